"""Requests wait until the programs that they need are compiled beside."""

import types

import pytest

from nemodiff_jax.decode.config import RowSettings
from nemodiff_jax.serve import ready
from nemodiff_jax.serve.pages import PagePool
from nemodiff_jax.serve.preparing import Preparing
from nemodiff_jax.serve.programs import Programs
from nemodiff_jax.serve.request import Request


def generation(logprobs=None, adjust=None, tokens=450):
  """As much of one as counts for its programs."""
  return types.SimpleNamespace(
    request=Request([7] * tokens, 5),
    settings=RowSettings(logprobs=logprobs),
    adjust=adjust,
    traced=False,
    scores=None,
  )


@pytest.mark.parametrize("logprobs", [None, 2])
@pytest.mark.parametrize("adjust", [None, "bias"])
def test_a_request_waits_for_each_program_of_its_kind(logprobs, adjust):
  """Its prompt takes a chunk of 384 tokens, and one of 66."""
  made = types.SimpleNamespace(compile=lambda: None)
  programs = Programs(lambda key: made)
  preparing = Preparing(programs, 4, (1, 8), 0)
  row = generation(logprobs, adjust)
  assert preparing.add(row, [row], PagePool(8, 128), 384)
  while not preparing.ready():
    programs._thread.join()
  assert list(programs.seconds) == [
    ("read", 384),
    ("begin", 128, adjust is not None),
    ("passes", 1, 8, logprobs is not None, adjust is not None, False),
  ]
  again = generation(logprobs, adjust)
  assert not preparing.add(again, [again], PagePool(8, 128), 384)


@pytest.mark.parametrize(
  "tokens, masks, sizes",
  [
    (100, 0, [("begin", 128)]),
    (128, 0, [("begin", 128)]),
    (129, 0, [("read", 64), ("read", 64), ("begin", 16)]),
    (84, 300, [("begin", 384)]),
    (85, 300, [("read", 64), ("begin", 384)]),  # No chunk has room for more.
  ],
)
def test_a_short_prompt_waits_for_the_program_that_reads_it_at_once(
  tokens, masks, sizes
):
  """Beside rows that are watched, where others are read 64 at a time."""
  programs = Programs(lambda key: types.SimpleNamespace(compile=lambda: None))
  preparing = Preparing(programs, 4, (8,), masks)
  row = generation(tokens=tokens)
  assert preparing.add(row, [row], PagePool(8, 128), 64)
  while not preparing.ready():
    programs._thread.join()
  found = [key[:2] for key in programs.seconds if key[0] != "passes"]
  assert found == list(dict.fromkeys(sizes))


def test_a_better_program_pays_by_the_tokens_of_all_who_run_or_wait(
  monkeypatch,
):
  better = types.SimpleNamespace(rows=4, widths=(8,), missing=("passes", 2))
  asked, later = [], []
  monkeypatch.setattr(ready, "choose", lambda *_: better)
  monkeypatch.setattr(ready, "pays", lambda *given: not asked.append(given[2]))
  programs = types.SimpleNamespace(busy=False, later=later.append)
  rows = [generation(), generation()]
  for row, said in zip(rows, ([7] * 3, []), strict=True):
    row.settings = RowSettings(10)
    row.output = types.SimpleNamespace(token_ids=said)
  preparing = Preparing(programs, 4, (8,), 0)
  assert preparing.choose(1, rows[:1], rows, None) == (4, (8,))
  assert asked == [7 + 10] and later == [better.missing]
