"""What decoding compiles, and what the caller's own settings do to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nemodiff_jax.decode import driver, generate, linear_spec, rows, sampling
from nemodiff_jax.decode.config import MODES, RowSettings, decode_config
from nemodiff_jax.decode.generate import stream_ids
from nemodiff_jax.decode.state import Decoder, new_state
from nemodiff_jax.nn.cache import init_cache, own_pages
from tests import helpers


def streamed(tiny, mode, row, prompt, **more):
  config = decode_config(tiny.config, mode, block_length=8)
  weights = tiny.weights(True)
  yield from stream_ids(tiny.module, weights, config, [prompt], [row], **more)


@pytest.mark.parametrize("mode", MODES)
def test_a_stream_is_one_program(tiny, mode):
  """Its state keeps the very types it began with."""
  prompt = helpers.prompts_of(tiny.config, (9,))[0]
  jax.clear_caches()
  count = 0
  for step in streamed(tiny, mode, RowSettings(20), prompt):
    weak = [
      jax.tree_util.keystr(path)
      for path, x in jax.tree_util.tree_leaves_with_path(step.state)
      if x.weak_type
    ]
    assert not weak, (count, weak)
    count += 1
  assert count > 2 and driver.one_pass._cache_size() == 1


def test_a_new_state_can_be_donated(tiny):
  """No two fields share a buffer."""
  config = decode_config(tiny.config, "linear_spec", block_length=8)
  decoder = Decoder(tiny.module, linear_spec.MODE, 8)
  asked = rows.make_rows(tiny.config, config, [RowSettings(8)])
  cache, table = init_cache(tiny.config, 1), own_pages(1, 128)
  state = new_state(decoder, cache, table, asked, jnp.asarray([5], jnp.int32))
  owners = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
  assert len(owners) == len(set(owners))


@pytest.mark.parametrize("mode", MODES)
def test_the_drafter_drafts_in_linear_spec_alone(tiny, mode):
  """Whoever calls the drivers with a drafter gets the mode's own output."""
  prompts = helpers.prompts_of(tiny.config, (9, 4))
  config = decode_config(tiny.config, mode, block_length=8)
  row = [RowSettings(24)] * 2
  plain, drafted = (
    generate.decode_ids(tiny.module, tiny.weights(lora), config, prompts, row)
    for lora in (False, True)
  )
  assert [p.token_ids for p in plain] == [d.token_ids for d in drafted]
  if mode == "linear_spec":
    assert [p.nfe for p in plain] != [d.nfe for d in drafted]


def test_noise_is_threefry_whatever_jax_is_told():
  seed = jnp.asarray([[3, 4]], jnp.uint32)
  at = jnp.asarray([[7, 2**20]], jnp.int32)
  want = sampling._gumbel(seed, at, 97)
  key = jax.random.wrap_key_data(seed[0], impl="threefry2x32")
  for i, position in enumerate(at[0]):
    drawn = jax.random.gumbel(jax.random.fold_in(key, position), (97,))
    np.testing.assert_array_equal(want[0, i], drawn)
  for flag, value, before in (
    ("jax_default_prng_impl", "rbg", "threefry2x32"),
    ("jax_threefry_partitionable", False, True),
  ):
    try:
      jax.config.update(flag, value)
      np.testing.assert_array_equal(sampling._gumbel(seed, at, 97), want)
    finally:
      jax.config.update(flag, before)
