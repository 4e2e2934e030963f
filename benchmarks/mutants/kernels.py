"""Breaks of the Mosaic kernels; see `benchmarks.mutations`."""

from benchmarks.mutants import Mutation, attention, pages

KERNELS = "pallas_kernels/range_attention/"
TESTS = "tests/pallas_kernels/"
ONE = "4x1x776x4x1x64"  # One token; long, short and empty rows.
RING = "2x4x600x4x1x128"  # More tiles than the ring has.
EVEN = "1x4x600x4x1x128"  # All weights alike: nothing is rounded.
MIXED = "2x5x72x6x2x64"  # Empty rows; two key heads.
BLOCK = "1x32x128x4x1x128"  # Causal, large logits, two share a tile.
ROWS = "1x72x136x4x1x64"  # Three tiles of rows for two blocks.
BELOW = "2x3x72x4x1x64"  # One key or two: far above 0, or far below.


def _break(
  what: str, file: str, old: str, new: str, case: str, chip: str = "hopper"
) -> Mutation:
  """One that a case of the suite of a chip should notice."""
  tests = (
    TESTS + "test_mosaic.py",
    "-k",
    f"without_races and {chip} and {case}",
  )
  return Mutation(f"{chip}: {what}", KERNELS + file, old, new, tests)


def _miscount(what: str, file: str, old: str, new: str) -> Mutation:
  """One that counting should notice."""
  tests = (TESTS + "test_mosaic_plan.py",)
  return Mutation(f"plan: {what}", KERNELS + file, old, new, tests)


PEAK = "peak_now = jnp.maximum(peak, scores.max(axis=1))"
SHIFT = "left = limit - (item.first + i) * keys"
RING_FILE = "mosaic_ring.py"
LOADS = (
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
    "  plgpu.barrier_wait(q_full)\n", "", ONE,
  ),
  _break(
    "queries replaced while another reads them", "mosaic_block.py",
    "num_arrivals=sizes.key_groups, num_barriers", "num_barriers", ONE,
  ),
  _break(
    "K given back before it is used", "mosaic_hopper.py",
    "    plgpu.barrier_wait(ring.k_full.at[slot])\n",
    "    plgpu.barrier_wait(ring.k_full.at[slot])\n"
    "    plgpu.barrier_arrive(ring.k_free.at[slot])\n", RING,
  ),
  _break(
    "no wait for a free slot of K", RING_FILE,
    "    pl.when(again)(lambda: plgpu.barrier_wait(ring.k_free.at[slot]))\n",
    "", RING,
  ),
  _break(
    "no wait for a free slot of V", RING_FILE,
    "    pl.when(again)(lambda: plgpu.barrier_wait(ring.v_free.at[slot]))\n",
    "", RING,
  ),
  _break(
    "V not waited for before it is cleaned", RING_FILE,
    "      plgpu.barrier_wait(ring.landed)\n", "", ONE,
  ),
  _break(
    "V beyond the last key not cleaned", RING_FILE,
    "      _clear(ring.v.at[slot], lax.rem(item.limit, block))\n", "", ONE,
  ),
  _break(
    "one key too few cleaned", RING_FILE,
    "rows < valid", "rows <= valid", ONE,
  ),
  _break("half of V cleaned", RING_FILE, "range(0, dim, 64)", "[0]", RING),
  _break(
    "the next tile of K", RING_FILE,
    "lax.rem(n * block, size)", "lax.rem(n * block + block, size)", RING,
  ),
  _break(
    "K of the first head", RING_FILE, "start, head", "start, 0", MIXED,
  ),
  _break(
    "slots counted anew in each item", "mosaic_hopper.py",
    "lax.rem(item.done + i, sizes.stages)", "lax.rem(i, sizes.stages)", ONE,
  ),
  _break(
    "turns counted anew in each item", "mosaic_block.py",
    "lax.rem(own + item.done, sizes.key_groups)", "own", RING,
  ),
  _break(
    "odd stages for two that take turns", "mosaic.py",
    "return stages // turns * turns", "return stages + 1 - stages % 2", RING,
  ),
  _break(
    "lse stored beyond its row", "mosaic_block.py",
    "(*lead, sizes.tile), jnp.float32", "(*lead, stored), jnp.float32", ONE,
  ),
  _break(
    "stores not awaited", "mosaic_block.py",
    "    plgpu.wait_smem_to_gmem(0, wait_read_only=True)\n    sums", "    sums",
    RING,
  ),
)  # fmt: skip
SUMS = (
  _break(
    "k_end one more", "mosaic_hopper.py", SHIFT, SHIFT + " + 1", BLOCK
  ),
  _break(
    "k_end one less", "mosaic_hopper.py", SHIFT, SHIFT + " - 1", BLOCK
  ),
  _break(
    "empty rows not told apart", "mosaic_block.py",
    "FLOOR = -1e20", "FLOOR = -1e30", MIXED,
  ),
  _break(
    "sum not decayed", "mosaic_block.py",
    "total * decay + weights", "total + weights", RING,
  ),
  _break(
    "output not decayed", "mosaic_hopper.py",
    "acc * lax.broadcast_in_dim(decay, acc.shape, [0])", "acc", RING,
  ),
  _break(
    "maximum not kept", "mosaic_block.py", PEAK,
    "peak_now = scores.max(axis=1)", BLOCK,
  ),
  _break(
    "maximum halved", "mosaic_block.py", PEAK, PEAK + " / 2", BELOW,
  ),
  _break(
    "maximum halved in the merge", "mosaic_merge.py",
    "functools.reduce(jnp.maximum, sums, peak)",
    "functools.reduce(jnp.maximum, sums, peak) / 2", BELOW,
  ),
  _break(
    "maximum starts at 0", "mosaic_block.py",
    "FLOOR = -1e20", "FLOOR = 0.0", BELOW,
  ),
  _break(
    "maximum starts at 0 in the merge", "mosaic_merge.py",
    "_LOW = -1e30", "_LOW = 0.0", BELOW,
  ),
  _break(
    "weights a little small", "mosaic_hopper.py",
    "p = p.astype(queries.dtype)", "p = (p * 0.998).astype(queries.dtype)",
    EVEN,
  ),
  _break(
    "scale a little large", "mosaic_block.py",
    "return math.log2(math.e)", "return 1.00001 * math.log2(math.e)", BLOCK,
  ),
  _break(
    "sums of rounded weights", "mosaic_block.py",
    "weights.sum(axis=1)",
    "weights.astype(jnp.bfloat16).astype(jnp.float32).sum(axis=1)", RING,
  ),
  _break(
    "partial results rounded", "mosaic_block.py",
    "sums[...] = acc(at, width)",
    "sums[...] = acc(at, width).astype(jnp.bfloat16).astype(jnp.float32)",
    EVEN,
  ),
  _break(
    "equal weights in the merge", "mosaic_merge.py",
    "jnp.exp2(x - peak_now) for x", "jnp.exp2(x * 0) for x", ONE,
  ),
  _break(
    "output not decayed in the merge", "mosaic_merge.py",
    "acc = acc * decay", "acc = acc", ONE,
  ),
  _break(
    "sum not decayed in the merge", "mosaic_merge.py",
    "total * decay + sum", "total + sum", ONE,
  ),
  _break(
    "parts beyond the last one merged", "mosaic_merge.py",
    "first + lax.min(n, count - 1)", "first + n", ONE,
  ),
  _break(
    "the last part merged again", "mosaic_merge.py",
    "jnp.where(n < count, logs[head, p, row], -jnp.inf)",
    "logs[head, p, row]", ONE,
  ),
  _break(
    "rows beyond a tile merged from the first", "mosaic_merge.py",
    "batch * sizes.tiles + lax.div(row, sizes.tile)", "batch * sizes.tiles",
    ROWS,
  ),
  _break(
    "k_end beyond S kept", "mosaic.py",
    "jnp.clip(k_end, 0, sizes.keys)", "jnp.clip(k_end, 0, None)", ONE,
  ),
  _break(
    "k_end below 0 kept", "mosaic.py",
    "jnp.clip(k_end, 0, sizes.keys)", "jnp.clip(k_end, None, sizes.keys)", ONE,
  ),
  _break(
    "partial tile not masked", "mosaic_plan.py",
    "by_tile.min(-1) // block", "by_tile.max(-1) // block", BLOCK,
  ),
)  # fmt: skip
BLACKWELL = (
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
    "output of the item before kept", "mosaic_blackwell.py",
    "summed, accumulate=j > 0", "summed, accumulate=True", ROWS, "blackwell",
  ),
  _break(
    "scores not waited for in registers", "mosaic_blackwell.py",
    "    plgpu.wait_load_tmem()\n", "", ONE, "blackwell",
  ),
  _break(
    "decayed output not committed", "mosaic_blackwell.py",
    "      plgpu.commit_tmem()\n", "", RING, "blackwell",
  ),
  _break(
    "weights a little small", "mosaic_blackwell.py",
    "p.astype(weights.dtype)", "(p * 0.998).astype(weights.dtype)", EVEN,
    "blackwell",
  ),
  _break(
    "k_end one more", "mosaic_blackwell.py", SHIFT, SHIFT + " + 1", BLOCK,
    "blackwell",
  ),
)  # fmt: skip
PLAN = (
  _miscount(
    "one tile too many", "mosaic_plan.py",
    "(limit + block - 1) // block", "limit // block + 1",
  ),
  _miscount(
    "what is left over is dropped", "mosaic_plan.py",
    "at * each + jnp.minimum(at, more)", "at * each",
  ),
  _miscount(
    "what is left over is for the last", "mosaic_plan.py",
    "jnp.minimum(at, more)", "jnp.where(at == blocks, more, 0)",
  ),
  _miscount(
    "the merge reads a part too few", "mosaic_plan.py",
    "tail - head + 1", "tail - head",
  ),
  _miscount(
    "the merge begins at the block before", "mosaic_plan.py",
    "cut[None, 1:-1] <= start[:-1, None]", "cut[None, 1:-1] < start[:-1, None]",
  ),
  _miscount(
    "a tile ends where its last row does", "mosaic_plan.py",
    "limit, full = by_tile.max(-1)", "limit, full = by_tile[:, -1]",
  ),
  _miscount(
    "a tile is full where its first row is", "mosaic_plan.py",
    "by_tile.min(-1) // block", "by_tile[:, 0] // block",
  ),
  _miscount(
    "rows that fill a tile up end at 0", "mosaic.py",
    'mode="edge"', 'mode="constant"',
  ),
  _miscount(
    "half of the chip", "mosaic.py",
    "chip.processors // kv_heads", "chip.processors // kv_heads // 2",
  ),
)  # fmt: skip
MUTATIONS = (
  *LOADS,
  *SUMS,
  *BLACKWELL,
  *PLAN,
  *attention.MUTATIONS,
  *pages.MUTATIONS,
)
