"""Single passes: what they see, what they keep, what they compile to."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nemodiff_jax.decode import (
  driver,
  generate,
  passes,
  quadratic_spec,
  rows,
  sampling,
)
from nemodiff_jax.decode.config import MODES, RowSettings, decode_config
from nemodiff_jax.decode.log import new_log
from nemodiff_jax.decode.prefill import bucket, chunk_width
from nemodiff_jax.decode.state import Picked
from nemodiff_jax.nn import model
from tests import helpers

SIZES = (70, 3, 29)
# Operation by operation a pass is a hundred programs.
hidden_pass = jax.jit(passes.block_pass, static_argnums=0)
quadratic_pass = jax.jit(quadratic_spec.quadratic_pass, static_argnums=0)
head = jax.jit(model.head, static_argnums=0)


def started(tiny, mode, size=8, sizes=SIZES, **row):
  config = decode_config(tiny.config, mode, block_length=size)
  prompts = helpers.prompts_of(tiny.config, sizes)
  settings = [RowSettings(max_new_tokens=30, **row)] * len(sizes)
  weights = tiny.weights(True)
  decoder, state, emitted = generate.start(
    tiny.module, weights, config, prompts, settings
  )
  return decoder, weights, state, emitted


def read(tiny, hidden):
  return np.asarray(head(tiny.module, tiny.params, hidden))


def block_pass(decoder, weights, state, causal, lora=None):
  hidden, state = hidden_pass(decoder, weights, state, causal, lora)
  return head(decoder.module, weights.params, hidden), state


def test_quadratic_column_zero_is_verification(tiny):
  decoder, weights, state, _ = started(tiny, "quadratic_spec")
  hidden, after = quadratic_pass(decoder, weights, state)
  causal = jnp.ones(len(SIZES), bool)
  verified, kept = block_pass(decoder, weights, state, causal)
  np.testing.assert_allclose(
    read(tiny, hidden[:, :, 0]), verified, rtol=1e-4, atol=1e-4
  )
  for a, b in zip(after.cache.k, kept.cache.k, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_quadratic_masks_are_a_draft_behind_each_prefix(tiny):
  decoder, weights, state, _ = started(tiny, "quadratic_spec")
  hidden, after = quadratic_pass(decoder, weights, state)
  masks = jnp.full_like(state.block.token, tiny.config.mask_id)
  everywhere = jnp.zeros(len(SIZES), bool)
  for i in range(decoder.block):
    behind = replace(after, lengths=state.lengths + i + 1, block=Picked(masks))
    drafted, _ = block_pass(decoder, weights, behind, everywhere)
    np.testing.assert_allclose(
      read(tiny, hidden[:, i, 1:]), drafted, rtol=1e-4, atol=1e-4
    )


def test_quadratic_bootstrap_is_a_draft_behind_the_prompt(tiny):
  decoder, weights, state, emitted = started(tiny, "quadratic_spec")
  masks = jnp.full_like(state.block.token, tiny.config.mask_id)
  drafted, _ = block_pass(
    decoder,
    weights,
    replace(state, block=Picked(masks)),
    jnp.zeros(len(SIZES), bool),
  )
  quiet = np.array(drafted)
  quiet[..., tiny.config.mask_id] = -np.inf
  np.testing.assert_array_equal(
    state.block.token[:, 1:], quiet.argmax(-1)[:, 1:]
  )
  np.testing.assert_array_equal(
    state.block.token[:, 0], emitted.picked.token[:, 0]
  )


def test_a_draft_leaves_nothing_behind(tiny):
  """A causal pass after a draft sees what it would have seen without it."""
  decoder, weights, state, _ = started(tiny, "linear_spec")
  block = jnp.arange(8, dtype=jnp.int32)[None] + jnp.full((3, 1), 40, jnp.int32)
  state = replace(state, block=Picked(block))
  causal, drafting = jnp.ones(3, bool), jnp.zeros(3, bool)
  want, _ = block_pass(decoder, weights, state, causal)
  _, drafted = block_pass(decoder, weights, state, drafting)
  got, _ = block_pass(decoder, weights, drafted, causal)
  np.testing.assert_array_equal(got, want)


def test_drafter_works_in_drafting_rows_only(tiny):
  decoder, weights, state, _ = started(tiny, "linear_spec")
  mixed = jnp.asarray([True, False, True])
  logits = lambda *lora: np.asarray(
    block_pass(decoder, weights, state, mixed, *lora)[0]
  )
  with_lora, without = logits(weights.lora), logits()
  np.testing.assert_array_equal(with_lora[[0, 2]], without[[0, 2]])
  assert np.abs(with_lora[1] - without[1]).max() > 0.1


def test_ended_rows_see_and_write_nothing(tiny):
  decoder, weights, state, _ = started(tiny, "ar", size=1)
  ended = replace(state, status=jnp.asarray([0, 1, 2], jnp.int32))
  _, after = block_pass(decoder, weights, ended, jnp.ones(3, bool))
  for old, new in zip(state.cache.k, after.cache.k, strict=True):
    np.testing.assert_array_equal(old[1:], new[1:])
    assert (old[0] != new[0]).any()
  np.testing.assert_array_equal(after.nfe - state.nfe, [1, 0, 0])


def test_logits_do_not_grow_with_the_batch(tiny, monkeypatch):
  """A few rows at a time, with the same tokens and confidences."""
  decoder, weights, state, _ = started(tiny, "linear_spec", temperature=0.7)
  causal = jnp.ones(len(SIZES), bool)
  hidden, state = hidden_pass(decoder, weights, state, causal)
  at = state.lengths[:, None] + jnp.arange(8, dtype=jnp.int32)[None]

  def read():
    again = lambda: sampling.read(decoder, weights, hidden, at, state)
    whole = f"f32[3,8,{tiny.config.vocab_size}]"
    return jax.jit(again)(), whole in str(jax.make_jaxpr(again)())

  want, grown = read()
  assert grown
  monkeypatch.setattr(sampling, "MAX_READ", 17)  # Two rows, then one.
  got, grown = read()
  assert not grown
  np.testing.assert_array_equal(got[0].token, want[0].token)
  np.testing.assert_allclose(got[1], want[1], rtol=1e-5)


def test_state_is_printable(tiny):
  _, _, state, _ = started(tiny, "diffusion")
  assert "lengths=Array([70,  3, 29]" in repr(state)


@pytest.fixture(params=MODES)
def compiled(tiny, request):
  decoder, weights, state, _ = started(
    tiny, request.param, sizes=(100, 3), temperature=0.5, top_p=0.9
  )
  log = new_log(decoder, 2, state.capacity)
  loop = driver.run.lower(decoder, weights, state, log)
  return loop.compile().as_text(), state


def test_loop_copies_no_cache(compiled):
  text, state = compiled
  shape = ",".join(map(str, state.cache.k[0].shape))
  made = re.findall(rf"= f32\[{shape}\]\S* ([\w-]+)\(", text)
  assert made  # The cache is there ...
  assert not {"copy", "copy-start", "transpose"} & set(made), set(made)


def test_loop_never_talks_to_the_host(compiled):
  text, _ = compiled
  assert not re.search(r"callback|outfeed|infeed|host-transfer|send\(", text)


def test_state_is_donated(tiny):
  decoder, weights, state, _ = started(tiny, "ar")
  cache = state.cache.k[0]
  driver.run(decoder, weights, state, new_log(decoder, 3, 128))
  assert cache.is_deleted()


def test_buckets_keep_programs_few():
  assert [bucket(n, 16) for n in (1, 16, 17, 100, 128)] == [
    16, 16, 32, 128, 128,
  ]  # fmt: skip
  assert [chunk_width(n, 0) for n in (3, 300, 512, 9000)] == [
    16, 512, 512, 512,
  ]  # fmt: skip
  assert chunk_width(5, 16) == 32 and chunk_width(5, 600) == 1024
  model = helpers.preset("8b")
  config = decode_config(model, "linear_spec")
  sizes = {
    rows.cache_capacity(model, config, p, n)
    for p in range(1, 4096, 7)
    for n in (64, 128, 512)
  }
  assert len(sizes) <= 24


@pytest.mark.slow
def test_ragged_jobs_share_programs(tiny):
  """Twelve batches of different lengths compile each program at most twice."""
  config = decode_config(tiny.config, "linear_spec", block_length=8)
  row = [RowSettings(max_new_tokens=8)]
  jax.clear_caches()
  for n in range(17, 29):
    tiny.decode(config, helpers.prompts_of(tiny.config, (n, 3)), row * 2)
  assert driver.run._cache_size() <= 2
