"""The engine: each request gets what it would get alone."""

import random

import numpy as np
import pytest

from nemodiff_jax.decode.config import RowSettings, decode_config
from nemodiff_jax.decode.generate import decode_ids
from nemodiff_jax.decode.modes import MODES
from nemodiff_jax.decode.state import Decoder
from nemodiff_jax.errors import UserError
from nemodiff_jax.serve.engine import Engine
from tests import helpers

SIZES = 1, 3, 20, 129, 128, 300


def make_engine(tiny, mode, pages, rows=4):
  config = decode_config(tiny.config, mode, block_length=8)
  decoder = Decoder(tiny.module, MODES[mode], config.slots, None, 2)
  return config, Engine(
    decoder, tiny.weights(True), config,
    rows=rows, pages=pages, max_length=512,
  )  # fmt: skip


def mixed(draw, seed):
  """Settings that differ in everything that shares a pass."""
  return RowSettings(
    draw.choice([1, 5, 20, 33]),
    temperature=draw.choice([0, 0, 0.7]),
    top_p=draw.choice([1.0, 0.9]),
    seed=seed,
    logprobs=draw.choice([None, None, 2]),
  )


@pytest.mark.parametrize("mode", MODES)
def test_requests_get_what_they_would_get_alone(tiny, mode):
  """Rows come and go at random, share pages, and are preempted."""
  draw = random.Random(3)
  config, engine = make_engine(tiny, mode, pages=7)
  sizes = [draw.choice(SIZES) for _ in range(12)]
  prompts = helpers.prompts_of(tiny.config, sizes)
  settings = [mixed(draw, seed) for seed in range(12)]
  waiting, made = list(zip(prompts, settings, strict=True)), []
  while waiting or not engine.idle:
    for _ in range(min(len(waiting), draw.randint(0, 3))):
      made.append(engine.submit(*waiting.pop(0)))
    engine.step()
  for prompt, row, got in zip(prompts, settings, made, strict=True):
    (want,) = decode_ids(
      tiny.module, tiny.weights(True), config, [prompt], [row]
    )
    got = got.output.result()
    same = "token_ids", "finish_reason", "nfe", "accepted"
    for name in same:
      assert getattr(got, name) == getattr(want, name), (name, len(prompt))
    if want.logprobs is not None:
      np.testing.assert_allclose(
        got.logprobs.token, want.logprobs.token, atol=1e-4
      )
      assert got.logprobs.top_ids == want.logprobs.top_ids
  assert engine.statistics.requests == 12


def test_a_request_that_cannot_fit_is_refused(tiny):
  _, engine = make_engine(tiny, "ar", pages=2)
  with pytest.raises(UserError, match="need 3 pages of 128 positions"):
    engine.submit([5] * 250, RowSettings(9))
  with pytest.raises(UserError, match="threshold is a setting of diffusion"):
    engine.submit([5], RowSettings(9, threshold=0.5))
  with pytest.raises(UserError, match="need a tokenizer"):
    engine.submit([5], RowSettings(9, stop="x"))
  assert engine.idle
