"""lm_eval's three clients of servers give the numbers of the Python API."""

import json

import pytest

pytest.importorskip("fastapi", reason="needs the extra [serve]")
for _name in ("lm_eval", "requests", "aiohttp", "tenacity"):
  pytest.importorskip(_name, reason="needs lm_eval and its extra [api]")

import nemodiff_jax as nd
from nemodiff_jax.evaluate.likelihood import score_ar

pytestmark = pytest.mark.slow
TEXTS = "What is 3 + 4?", "17 + 25 = 42\n42 - 8", "one two"
ENDS = "The answer is 7.", " = 34", " three"


def client(kind, url, batch_size=1):
  """A client that is given ids: its own tokenizers are others' files."""
  from lm_eval.models.openai_completions import (
    LocalChatCompletion,
    LocalCompletionsAPI,
  )
  from lm_eval.models.sglang_generate_API import SGLANGGENERATEAPI

  made, path = {
    "local-completions": (LocalCompletionsAPI, "/v1/completions"),
    "local-chat-completions": (LocalChatCompletion, "/v1/chat/completions"),
    "sglang-generate": (SGLANGGENERATEAPI, "/generate"),
  }[kind]
  return made(
    base_url=url + path, model="embedded", tokenizer_backend="None",
    batch_size=batch_size, max_retries=1,
  )  # fmt: skip


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("kind", ["local-completions", "sglang-generate"])
def test_likelihoods_are_those_of_python(embedded, kind, size):
  model, url, _ = embedded
  pairs = [
    (model.tokenizer.encode(a), model.tokenizer.encode(b)[1:])
    for a, b in zip(TEXTS, ENDS, strict=True)
  ]
  lm = client(kind, url, size)
  lm.tokenizer, lm.tokenized_requests = object(), True
  found = lm._loglikelihood_tokens([(("", ""), a, b) for a, b in pairs])
  want = score_ar(model, pairs, 1)
  assert [f[0] for f in found] == pytest.approx(
    [w.total for w in want], abs=2e-3
  )
  if kind == "local-completions":  # The other's own reading is reversed.
    assert [f[1] for f in found] == [w.greedy for w in want]


@pytest.mark.parametrize(
  "kind", ["local-completions", "sglang-generate", "local-chat-completions"]
)
def test_replies_are_those_of_python(embedded, kind):
  from lm_eval.api.instance import Instance
  from lm_eval.models.api_models import JsonChatStr

  model, url, _ = embedded
  chats = kind == "local-chat-completions"
  prompts = [[{"role": "user", "content": t}] if chats else t for t in TEXTS]
  settings = {"until": ["answer"], "max_gen_toks": 24, "do_sample": False}
  requests = [
    Instance(
      "generate_until", {},
      (JsonChatStr(json.dumps(p)) if chats else p, dict(settings)), i,
    )
    for i, p in enumerate(prompts)
  ]  # fmt: skip
  found = client(kind, url).generate_until(requests)
  want = nd.generate(
    model, prompts, mode="linear_spec", max_new_tokens=24, stop=["answer"]
  )
  assert found == [w.text for w in want]
