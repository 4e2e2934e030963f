"""Thinking budgets: where their token is forced, and how likely it was."""

import numpy as np
import pytest

from nemodiff_jax.decode.config import RowSettings, decode_config
from nemodiff_jax.errors import UserError
from nemodiff_jax.prompts import finish_row
from tests import helpers, twin
from tests.decode.batch import MODES
from tests.decode.test_outputs import log_softmax

START, END = 78, 77


def decode(tiny, mode, prompts, row):
  config = decode_config(tiny.config, mode, **MODES[mode])
  return tiny.decode(config, prompts, [row] * len(prompts))


def budget(tokens, **more):
  return RowSettings(
    20, max_thinking_tokens=tokens, end_think_token_id=END, **more
  )


@pytest.mark.parametrize(
  ("mode", "sampling"),
  [(mode, {}) for mode in MODES]
  + [("quadratic_spec", {"temperature": 0.8, "top_k": 2})],
)
def test_a_forced_token_has_its_own_logprob(tiny, mode, sampling):
  """In diffusion it was given, not read: it has none."""
  model = twin.NumpyModel(tiny.config, tiny.params)
  prompt = helpers.prompts_of(tiny.config, (9,))[0]
  for at in (0, 5):
    row = budget(at, logprobs=2, **sampling)
    found = decode(tiny, mode, [prompt], row)[0]
    if (place := found.token_ids.index(END)) != at:
      continue  # The model came to its end by itself.
    logits = model.causal(prompt + found.token_ids)[len(prompt) - 1 + place]
    logits[tiny.config.mask_id] = -np.inf
    own = log_softmax(logits / (sampling.get("temperature") or 1))
    if mode == "diffusion":
      assert found.logprobs.token[place] is None
      assert found.logprobs.top_ids[place] == []
    else:
      assert found.logprobs.token[place] == pytest.approx(own[END], abs=1e-3)
    others = found.logprobs.token[:place] + found.logprobs.token[place + 1 :]
    assert all(x <= 0 for x in others)


@pytest.mark.parametrize("mode", helpers.fewer(MODES))
def test_a_prompt_that_closed_thinking_has_no_budget(tiny, mode):
  """Unless it opened thinking again; and rows are told apart."""
  base = helpers.prompts_of(tiny.config, (9,))[0]
  base = [i for i in base if i not in (START, END)]
  closed, reopened = [*base, START, END], [*base, END, START]
  row = budget(3, start_think_token_id=START)
  free = RowSettings(20)
  shut, again, alone = (
    decode(tiny, mode, [p], r)[0].token_ids
    for p, r in ((closed, free), (reopened, row), (reopened, free))
  )
  found = decode(tiny, mode, [closed, reopened], row)
  assert found[0].token_ids == shut
  assert found[1].token_ids == again != alone and again[3] == END
  unnamed = decode(tiny, mode, [[*base, END]], budget(3))[0].token_ids
  assert unnamed == decode(tiny, mode, [[*base, END]], free)[0].token_ids


@pytest.mark.parametrize("end", [0, END])
def test_what_lies_behind_the_output_is_no_thought(tiny, end):
  """Id 0 fills the blocks of a new row, and is forced all the same."""
  prompt = [i for i in helpers.prompts_of(tiny.config, (9,))[0] if i != end]
  row = RowSettings(20, max_thinking_tokens=6, end_think_token_id=end)
  ids = decode(tiny, "ar", [prompt], row)[0].token_ids
  assert end in ids[:7]


def test_a_budget_at_the_limit_of_the_output_forces_nothing(tiny):
  prompt = helpers.prompts_of(tiny.config, (9,))
  free = decode(tiny, "ar", prompt, RowSettings(20))[0].token_ids
  for tokens in (20, 2**31 - 1):
    assert decode(tiny, "ar", prompt, budget(tokens))[0].token_ids == free
  assert decode(tiny, "ar", prompt, budget(19))[0].token_ids[19] == END


def test_a_budget_without_its_token_is_refused(tiny):
  row = RowSettings(20, max_thinking_tokens=3)
  with pytest.raises(UserError, match="needs end_think_token_id"):
    decode(tiny, "ar", [[9, 8]], row)
  with pytest.raises(UserError, match="should be at most 2147483647, got"):
    budget(2**32)


class Thinker:
  """A tokenizer that knows both tokens of thinking."""

  def id_of(self, token):
    return {"<think>": START, "</think>": END}.get(token)


def test_tokens_of_thinking_come_from_the_tokenizer():
  row = finish_row(Thinker(), RowSettings(20, max_thinking_tokens=3))
  assert (row.start_think_token_id, row.end_think_token_id) == (START, END)
  given = RowSettings(
    20, max_thinking_tokens=3, end_think_token_id=5, start_think_token_id=6
  )
  assert finish_row(Thinker(), given) == given
  plain = RowSettings(20)
  assert finish_row(Thinker(), plain) == plain
