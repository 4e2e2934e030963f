"""Requests wait until the programs that they need are compiled beside."""

import types

import pytest

from nemodiff_jax.decode.config import RowSettings
from nemodiff_jax.serve.pages import PagePool
from nemodiff_jax.serve.preparing import Preparing
from nemodiff_jax.serve.programs import Programs
from nemodiff_jax.serve.request import Request


def generation(logprobs=None, adjust=None):
  """As much of one as counts for its programs, of 450 tokens."""
  return types.SimpleNamespace(
    request=Request([7] * 450, 5),
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
