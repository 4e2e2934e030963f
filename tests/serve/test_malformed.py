"""A thousand bodies that are made up: none of them is the server's fault."""

import json
import random

import pytest

pytest.importorskip("fastapi", reason="needs the extra [serve]")
http = pytest.importorskip("httpx2", reason="needs the extra [dev]")

from nemodiff_jax.serve.protocol.openai import (
  ChatRequest,
  CompletionRequest,
  Detokenize,
  TokenizeChat,
  TokenizeText,
)
from nemodiff_jax.serve.protocol.sglang import (
  AbortRequest,
  GenerateRequest,
  SamplingParams,
)
from tests.serve import fakes

VALUES = (
  None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, 2**31, 2**63, 2**64, -(2**70),
  10**400, float("nan"), float("inf"), "", "a", "\x00", "☃" * 50, "auto", "ar",
  "json_object", "257", [], [0], [[]], [[1, 2]], ["a"], [""], [None], [{}], [-5],
  [10**30], {}, {"a": 1}, {"type": "text"}, {"type": "json_object"},
  {"type": "json_schema"}, {"type": "json_schema", "json_schema": {"schema": 3}},
  {"regex": "("}, {"json": {"type": 5}}, {"choice": []}, {"grammar": "x"},
  {"0": 1e400}, {"x": 1}, {"role": "user", "content": "a"},
  [{"role": "user", "content": "a"}], [{"role": "x", "content": "a"}],
  [{"role": "user"}], [{"role": "user", "content": [{"type": "image_url"}]}],
  [{"role": "assistant", "content": None, "tool_calls": [{}]}],
  [{"type": "function", "function": {"name": "f", "parameters": {"type": "x"}}}],
  [{"type": "function"}], {"type": "content", "content": 3},
  {"type": "content", "content": "a"}, {"include_usage": 5},
)  # fmt: skip
FIELDS = {
  "/v1/chat/completions": [*ChatRequest.model_fields, "nonsense"],
  "/v1/completions": [*CompletionRequest.model_fields, "nonsense"],
  "/generate": [*GenerateRequest.model_fields, "nonsense"],
  "/tokenize": [*TokenizeText.model_fields, *TokenizeChat.model_fields],
  "/detokenize": [*Detokenize.model_fields],
  "/abort_request": [*AbortRequest.model_fields],
}
GOOD = {
  "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
  "/v1/completions": {"prompt": "a"},
  "/generate": {"text": "a"},
  "/tokenize": {"prompt": "a"},
  "/detokenize": {"tokens": [97]},
  "/abort_request": {"rid": "a"},
}


@pytest.fixture(scope="module")
def engine():
  return fakes.FakeEngine(lambda job: [97, fakes.EOS])


def bodies(count, seed=0):
  """Paths, and bodies: wrong fields in right bodies, and broken JSON."""
  draw = random.Random(seed)
  for _ in range(count):
    path = draw.choice([*FIELDS])
    body = dict(GOOD[path]) if draw.random() < 0.9 else {}
    for _ in range(draw.choice([1, 1, 1, 2])):
      body[draw.choice(FIELDS[path])] = draw.choice(VALUES)
    if path == "/generate" and draw.random() < 0.5:
      names = [*SamplingParams.model_fields, "nonsense"]
      own = {draw.choice(names): draw.choice(VALUES) for _ in range(2)}
      body["sampling_params"] = own if draw.random() < 0.8 else [own]
    data = json.dumps(body).encode()
    if draw.random() < 0.15:  # A byte is lost, changed, or there twice.
      at = draw.randrange(len(data))
      new = draw.choice([b"", bytes([draw.randrange(256)]), data[at : at + 2]])
      data = data[:at] + new + data[at + 1 :]
    yield path, data


def test_no_body_is_an_error_of_the_servers_own(url, engine):
  kinds = {200: 0, 400: 0}
  with http.Client(base_url=url, timeout=60) as client:
    for path, body in bodies(1000):
      found = client.post(path, content=body)
      assert found.status_code in kinds, (path, body, found.text)
      kinds[found.status_code] += 1
      if found.status_code == 400:
        assert found.json()["error"]["message"], (path, body)
        assert len(found.content) < 2000, (path, body)
      elif "data: " in found.text:
        assert '"code":500' not in found.text.replace(" ", ""), (path, body)
    assert client.get("/health").status_code == 200
  assert min(kinds.values()) > 50 and not engine.busy()


def test_bodies_that_once_were(url):
  """Found by schemathesis and by the test above."""
  named = {"type": "function", "function": {"name": "f"}}
  for tools in (None, [], [{"type": "function", "function": {"name": "g"}}]):
    body = GOOD["/v1/chat/completions"] | {"tools": tools, "tool_choice": named}
    found = http.post(f"{url}/v1/chat/completions", json=body)
    assert found.status_code == 400
    assert found.json()["error"]["param"] in ("tools", "tool_choice")
  for body in ({"text": []}, {"input_ids": []}):
    found = http.post(f"{url}/generate", json=body)
    assert found.status_code == 400 and "at least one" in found.text
