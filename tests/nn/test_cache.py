"""Writing into the cache: one slot on a GPU, and slots that differ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nemodiff_jax.decode.config import MODES, RowSettings, decode_config
from nemodiff_jax.nn import cache as kv_cache
from pallas_kernels.range_attention import PAGE
from tests import helpers

write = kv_cache.write


@pytest.mark.parametrize("slot", [0, 3, PAGE, 10 * PAGE])
def test_one_slot_on_a_gpu(slot, monkeypatch):
  """Written as two, the second of which is dropped."""
  other = lambda *args, cpu, default: default(*args)
  monkeypatch.setattr(kv_cache.lax, "platform_dependent", other)
  at = jnp.full((1, 1), slot, jnp.int32)
  table = jnp.ones((1, 1), jnp.int32)
  at = kv_cache.addresses(at, table, 2)
  got = write(jnp.zeros((2, PAGE, 1, 1)), jnp.ones((1, 1, 1, 1)), at)
  np.testing.assert_array_equal(got[1, :, 0, 0], np.arange(PAGE) == slot)
  assert not got[0].any()


@pytest.mark.parametrize(
  "mode",
  [
    pytest.param(m, marks=() if m == "quadratic_spec" else pytest.mark.slow)
    for m in MODES
  ],
)
def test_slots_of_a_row_differ(mode, monkeypatch):
  """What `write` promises the compiler, in prefill, passes and padding."""
  written = []

  def look(slots, capacity):
    for row in slots.tolist():
      kept = [slot for slot in row if slot < capacity]
      written.append((len(kept), len(set(kept))))

  def watched(pool, new, at):
    jax.debug.callback(look, at, pool.shape[0] * PAGE)
    return write(pool, new, at)

  monkeypatch.setattr(kv_cache, "write", watched)
  # A size of its own, so that no test has compiled its programs before.
  tiny = helpers.make_tiny(num_layers=1, max_positions=4093)
  how = decode_config(tiny.config, mode, block_length=4)
  settings = [RowSettings(max_new_tokens=n, ignore_eos=True) for n in (9, 1)]
  tiny.decode(how, helpers.prompts_of(tiny.config, (19, 2)), settings)
  jax.effects_barrier()
  counts, different = zip(*written, strict=True)
  assert counts == different
  assert min(counts) == 0  # The row that has ended.
  assert max(counts) > 1


@pytest.mark.parametrize(("steps", "updates"), [(1, 2), (32, 32)])
def test_a_gpu_is_told_that_slots_differ(steps, updates):
  """Else it compares and swaps each element."""
  shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.bfloat16)
  slots = jax.ShapeDtypeStruct((1, steps), jnp.int32)
  traced = jax.jit(write).trace(
    shape(4, PAGE, 2, 8),
    shape(1, steps, 2, 8),
    slots,
  )
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert text.count('"stablehlo.scatter"') == 1
  assert "unique_indices = true" in text
  assert f"tensor<1x{updates}x2x8xbf16>" in text
