"""Defaults of settings, and limits that are met exactly."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from nemodiff_jax.decode import ar, sampling
from nemodiff_jax.decode.commit import reveal
from nemodiff_jax.decode.config import (
  MODES,
  DecodeConfig,
  RowSettings,
  check_prompt,
  decode_config,
)
from nemodiff_jax.decode.rows import make_rows
from nemodiff_jax.decode.state import Decoder, Sampling
from nemodiff_jax.errors import UserError
from nemodiff_jax.nn.config import preset
from nemodiff_jax.nn.model import Transformer

BIG, TINY = preset("8b"), preset("tiny")


def test_defaults_of_a_run():
  """As design and --help state them; steps alone mean no threshold."""
  for mode in MODES:
    config = decode_config(BIG, mode)
    assert config.block_length == (16 if mode == "quadratic_spec" else 32)
    assert config.threshold == 0.9 and config.steps_per_block is None
    assert config.draft_threshold == 0
  other = dataclasses.replace(BIG, block_size=8)
  assert decode_config(other, "diffusion").block_length == 8
  assert decode_config(other, "quadratic_spec").block_length == 16
  assert decode_config(BIG, "diffusion", steps_per_block=4).threshold is None
  both = decode_config(BIG, "diffusion", steps_per_block=4, threshold=0.7)
  assert (both.threshold, both.steps_per_block) == (0.7, 4)
  assert decode_config(BIG, "diffusion", threshold=None).threshold is None
  drafts = decode_config(BIG, "linear_spec", draft_threshold=0.3)
  assert drafts.draft_threshold == 0.3
  assert decode_config(BIG).mode == "linear_spec"
  assert decode_config(BIG).widths == (1, 8, 16, 32)
  plain = dataclasses.replace(BIG, mask_id=None)
  assert decode_config(plain).mode == "ar" and not decode_config(plain).widths
  fixed = decode_config(BIG, block_length=16)
  assert (fixed.mode, fixed.block_length, fixed.widths) == (
    "linear_spec", 16, None,
  )  # fmt: skip


def test_defaults_of_a_row():
  row = RowSettings()
  assert row.max_new_tokens == 128 and row.temperature == 0
  assert (row.top_k, row.top_p, row.min_p, row.seed) == (0, 1, 0, 0)
  assert not row.ignore_eos and row.logprobs is None
  assert row.stop_token_ids == () and row.stop == ()


@pytest.mark.parametrize(
  ("field", "good", "bad"),
  [
    ("max_new_tokens", 1, 0),
    ("temperature", 1000, 1000.1),
    ("temperature", 0, -1e-9),
    ("top_k", 0, -1),
    ("top_p", 1.0, 1.0000001),
    ("top_p", 1e-9, 0),
    ("min_p", 1, 1.0000001),
    ("min_p", 0, -1e-9),
    ("seed", 2**64 - 1, 2**64),
    ("logprobs", 20, 21),
    ("logprobs", 0, -1),
    ("max_thinking_tokens", 0, -1),
    ("max_thinking_tokens", 2**31 - 1, 2**31),
  ],
)
def test_limits_of_a_row_are_inclusive(field, good, bad):
  assert getattr(RowSettings(**{field: good}), field) == good
  with pytest.raises(UserError, match=field):
    RowSettings(**{field: bad})


@pytest.mark.parametrize(
  ("field", "good", "bad"),
  [
    ("block_length", 1, 0),
    ("threshold", 1, 1.0000001),
    ("threshold", 1e-9, 0),
    ("steps_per_block", 1, 0),
    ("draft_threshold", 1, 1.0000001),
    ("draft_threshold", 0, -1e-9),
  ],
)
def test_limits_of_a_run_are_inclusive(field, good, bad):
  DecodeConfig("diffusion", **{field: good})
  with pytest.raises(UserError, match=field):
    DecodeConfig("diffusion", **{field: bad})


def test_a_prompt_may_fill_the_model_and_not_one_more():
  limit, last = TINY.max_positions, TINY.vocab_size - 1
  ids = [last] * (limit - 3)
  assert check_prompt(ids, RowSettings(3), TINY) == ids
  with pytest.raises(UserError, match=rf"at most {limit} \(the model's limit"):
    check_prompt(ids, RowSettings(4), TINY)
  assert check_prompt([last] * 5, RowSettings(3), TINY, 8)
  with pytest.raises(UserError, match=r"at most 8 \(max_length's limit"):
    check_prompt([last] * 6, RowSettings(3), TINY, 8)
  with pytest.raises(UserError, match=r"lie in \[0, 97\), got 97"):
    check_prompt([last + 1], RowSettings(3), TINY)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("stop_token_ids", (TINY.mask_id,)),
    ("end_think_token_id", TINY.mask_id),
    ("start_think_token_id", TINY.mask_id),
  ],
)
def test_the_mask_ends_no_row(field, value):
  row = RowSettings(**{field: value})
  with pytest.raises(UserError, match=f"{field} should not be the mask id"):
    check_prompt([7], row, TINY)
  plain = dataclasses.replace(TINY, mask_id=None)
  assert check_prompt([7], row, plain) == [7]


def kept(logits, **row):
  rows = make_rows(TINY, decode_config(TINY), [RowSettings(9, 1.0, **row)])
  logits = jnp.asarray([[logits]], jnp.float32)
  return np.flatnonzero(sampling._kept(logits, rows)[0, 0]).tolist()


def test_filters_at_their_very_edge():
  """Weights 1/2, 1/4, 1/4: exact in float32; ties go to the lower id."""
  logits = np.log2([2, 1, 1]).astype(np.float32) * np.float32(np.log(2))
  weight = np.asarray(jnp.exp(logits - logits.max()))
  assert weight.tolist() == [1, 0.5, 0.5]
  assert kept(logits, top_p=0.5) == [0]
  assert kept(logits, top_p=0.500001) == [0, 1]
  assert kept(logits, top_p=0.75) == [0, 1]
  assert kept(logits, min_p=0.5) == [0, 1, 2]
  assert kept(logits, min_p=0.500001) == [0]
  assert kept(logits[::-1], top_k=2) == [0, 2]


@pytest.mark.parametrize("k", [1, 3, 96, 97, 1000])
def test_top_k_keeps_k_of_equal_logits(k):
  assert kept([0.0] * 97, top_k=k) == list(range(min(k, 97)))
  assert kept([-np.inf, 1, 1, 1], top_k=2) == [1, 2]


@pytest.mark.parametrize("temperature", [1e-45, 1.2e-38, 1e-30, 1e-6])
def test_a_tiny_temperature_is_greedy(temperature):
  decoder = Decoder(Transformer(TINY), ar.MODE, 1)
  logits = np.random.default_rng(1).standard_normal((1, 50, 97)) * 9
  logits = jnp.asarray(logits, jnp.float32)
  row = RowSettings(9, temperature)
  rows = make_rows(TINY, decode_config(TINY), [row])
  at = jnp.arange(50, dtype=jnp.int32)[None]
  token, *_ = sampling.choose(decoder, Sampling.PLAIN, logits, at, rows)
  quiet = np.array(logits)
  quiet[..., TINY.mask_id] = -np.inf
  np.testing.assert_array_equal(token, quiet.argmax(-1))


def test_a_confidence_at_the_threshold_is_revealed():
  sure = jnp.asarray([[0.9, np.nextafter(np.float32(0.9), 0), 0.3, 1.0]])
  threshold = jnp.asarray([0.9], jnp.float32)
  shown = reveal(
    sure.astype(jnp.float32),
    jnp.ones((1, 4), bool),
    threshold,
    jnp.zeros(1, jnp.int32),
  )
  assert shown.tolist() == [[True, False, False, True]]
