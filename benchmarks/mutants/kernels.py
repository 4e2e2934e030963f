"""Breaks of the Mosaic kernels; see `benchmarks.mutations`."""

from benchmarks.mutants import Mutation

KERNELS = "pallas_kernels/range_attention/"
SUITE = "tests/pallas_kernels/test_mosaic.py"
ONE = "4x1x392x4x1x64"  # One token; long, short and empty rows.
RING = "1x4x600x4x1x128-block-1"  # More tiles than the ring has.
EVEN = "1x4x600x4x1x128-block-0"  # All weights alike: nothing is rounded.
MIXED = "2x5x72x3x1x64"  # Empty rows.
BLOCK = "1x32x128x4x1x128"  # Causal, large logits, two share a tile.


def _break(
  what: str, file: str, old: str, new: str, case: str, chip: str = "hopper"
) -> Mutation:
  """One that a case of the suite of a chip should notice."""
  choice = f"without_races and {chip} and {case}"
  return Mutation(
    f"{chip}: {what}", KERNELS + file, old, new, (SUITE, "-k", choice)
  )


PEAK = "peak_now = jnp.maximum(peak, scores.max(axis=1))"
SHIFT = "left = limit - (span.first + i) * keys"
MUTATIONS = (
  _break(
    "no wait for K", "mosaic_hopper.py",
    "    plgpu.barrier_wait(ring.k_full.at[slot])\n", "", ONE,
  ),
  _break(
    "no wait for V", "mosaic_hopper.py",
    "    plgpu.barrier_wait(ring.v_full.at[slot])\n", "", ONE,
  ),
  _break(
    "no wait for the queries", "mosaic_block.py",
    "  plgpu.barrier_wait(loaded)\n", "", ONE,
  ),
  _break(
    "K given back before it is used", "mosaic_hopper.py",
    "    plgpu.barrier_wait(ring.k_full.at[slot])\n",
    "    plgpu.barrier_wait(ring.k_full.at[slot])\n"
    "    plgpu.barrier_arrive(ring.k_free.at[slot])\n", RING,
  ),
  _break(
    "no wait for a free slot", "mosaic_block.py",
    "    pl.when(i >= stages)(lambda: wait(i))\n", "", RING,
  ),
  _break(
    "V not waited for before it is cleaned", "mosaic_block.py",
    "      plgpu.barrier_wait(ring.landed)\n", "", ONE,
  ),
  _break(
    "V beyond the last key not cleaned", "mosaic_block.py",
    "      _clear(ring.v.at[slot], span.limit - start)\n", "", ONE,
  ),
  _break(
    "k_end one more", "mosaic_hopper.py", SHIFT, SHIFT + " + 1", BLOCK
  ),
  _break(
    "k_end one less", "mosaic_hopper.py", SHIFT, SHIFT + " - 1", BLOCK
  ),
  _break(
    "partial tile not masked", "mosaic.py",
    "by_tile.min(-1) // block", "by_tile.max(-1) // block", BLOCK,
  ),
  _break(
    "last tile of a split left out", "mosaic_block.py",
    "lax.div((split + 1) * end, splits)",
    "lax.div((split + 1) * end - 1, splits)", RING,
  ),
  _break(
    "empty rows not told apart", "mosaic_block.py",
    "FLOOR = -1e20", "FLOOR = -1e30", MIXED,
  ),
  _break(
    "equal weights in the merge", "mosaic.py",
    "jnp.exp(x - peak) for x", "jnp.exp(x * 0) for x", RING,
  ),
  _break(
    "sum not decayed", "mosaic_block.py",
    "total * decay + weights", "total + weights", RING,
  ),
  _break(
    "lse stored beyond its row", "mosaic_block.py",
    "(*lead[:-1], sizes.tiles * sizes.tile), jnp.float32",
    "lead, jnp.float32", ONE,
  ),
  _break(
    "maximum not kept", "mosaic_block.py", PEAK,
    "peak_now = scores.max(axis=1)", BLOCK,
  ),
  _break(
    "maximum halved", "mosaic_block.py", PEAK, PEAK + " / 2", BLOCK,
  ),
  _break(
    "one tile too many", "mosaic.py",
    "(limit + block - 1) // block", "limit // block + 1", ONE,
  ),
  _break(
    "weights a little small", "mosaic_hopper.py",
    "p = p.astype(queries.dtype)", "p = (p * 0.996).astype(queries.dtype)",
    EVEN,
  ),
  _break(
    "k_end beyond S kept", "mosaic.py",
    "jnp.clip(k_end, 0, sizes.keys)", "jnp.clip(k_end, 0, None)", ONE,
  ),
  _break(
    "no wait for the scores", "mosaic_blackwell.py",
    "    plgpu.barrier_wait(scored)\n", "", ONE, "blackwell",
  ),
  _break(
    "no wait for the output", "mosaic_blackwell.py",
    "    plgpu.barrier_wait(summed)\n", "", RING, "blackwell",
  ),
  _break(
    "output not decayed", "mosaic_blackwell.py",
    "new = old * lax.broadcast_in_dim(decay, old.shape, [0])",
    "new = old", RING, "blackwell",
  ),
  _break(
    "k_end one more", "mosaic_blackwell.py", SHIFT, SHIFT + " + 1", BLOCK,
    "blackwell",
  ),
)  # fmt: skip
