"""A real pretrained model, tokenizer and chat template: SmolLM2-135M.

`make smollm2` downloads it; nothing of it is in the repository.
"""

import json
from pathlib import Path

import pytest

from nemodiff_jax import api
from tests import helpers
from tests.golden import make_smollm2 as golden

pytestmark = pytest.mark.slow
TEXTS = [
  "Once upon a time, in a small village by the river,",
  "def fibonacci(n):\n    ",
  "The three primary colours are",
]


@pytest.fixture(scope="module")
def model():
  return api.load(str(helpers.smollm2()))


def chats():
  return [[{"role": "user", "content": p}] for p in golden.PROMPTS]


def test_greedy_ar_text_is_that_of_transformers(model):
  path = Path(golden.__file__).with_name("smollm2.json")
  rows = json.loads(path.read_text())["rows"]
  got = api.generate(model, chats(), max_new_tokens=golden.TOKENS)
  for output, row in zip(got, rows, strict=True):
    assert output.token_ids == row["token_ids"], row["prompt"]
    assert output.text == row["text"]
    assert output.prompt_tokens == len(row["prompt_ids"])


@pytest.mark.parametrize(
  "mode, block", [("linear_spec", 8), ("quadratic_spec", 4)]
)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_speculation_equals_ar_on_real_text(model, mode, block, temperature):
  how = {"max_new_tokens": 24, "temperature": temperature, "seed": 3}
  want = api.generate(model, [*chats(), *TEXTS], **how)
  got = api.generate(
    model, [*chats(), *TEXTS], mode=mode, block_length=block, **how
  )
  assert [o.token_ids for o in got] == [o.token_ids for o in want]
  assert [o.text for o in got] == [o.text for o in want]
  assert sum(o.completion_tokens for o in got) > 100
