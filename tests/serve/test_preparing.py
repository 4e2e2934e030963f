"""Requests wait until the programs that they need are compiled beside."""

import types

import pytest

from nemodiff_jax.decode.config import RowSettings
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
  "tokens, sizes",
  [
    (100, [("begin", 128)]),
    (128, [("begin", 128)]),
    (129, [("read", 64), ("begin", 16)]),
  ],
)
def test_a_short_prompt_waits_for_the_program_that_reads_it_at_once(
  tokens, sizes
):
  """Beside rows that are watched, where others are read 64 at a time."""
  programs = Programs(lambda key: types.SimpleNamespace(compile=lambda: None))
  preparing = Preparing(programs, 4, (8,), 0)
  row = generation(tokens=tokens)
  assert preparing.add(row, [row], PagePool(8, 128), 64)
  while not preparing.ready():
    programs._thread.join()
  found = [key[:2] for key in programs.seconds if key[0] != "passes"]
  assert found == sizes
