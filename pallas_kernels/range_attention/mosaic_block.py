"""A thread block of the Mosaic kernels: what the chips have in common.

One warpgroup loads tiles of K and V by TMA into a ring in shared memory; two
compute: they wait for a tile, use it, and hand its slot back.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.range_attention import mosaic
from pallas_kernels.range_attention.config import Chip
from pallas_kernels.range_attention.mosaic import Work

MASKED = -1e30
FLOOR = -1e20  # The running maximum starts here: exp2(MASKED - FLOOR) is 0.
GRID = ("split", "tile", "head", "batch")
THREADS = "warpgroup"


def launch(
  compute: Callable,
  more: Callable,
  chip: Chip,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  k_end: jax.Array,
  interpret: plgpu.InterpretGPUParams | None,
) -> tuple[jax.Array, jax.Array]:
  """Packs the queries, runs the kernel and joins its partial results.

  Args:
    compute: what a compute warpgroup does: takes the static sizes, the `Span`,
      the `Place`, the packed queries and ends, the two outputs, the ring and
      its scratch.
    more: static sizes -> scratch types by name, over those of `scratch`.
    chip: static sizes.
    q: [B, T, N, H].
    k: [B, S, K, H].
    v: [B, S, K, H].
    k_end: [B, T] int32.
    interpret: runs the kernel on the CPU.

  Returns:
    The output and the log-sum-exp; see `api`.

  Raises:
    NotImplementedError: see `mosaic.unsupported`.
  """
  if reason := mosaic.unsupported(q.shape, k.shape, q.dtype):
    raise NotImplementedError(f"the Mosaic kernel cannot serve it: {reason}.")
  sizes = mosaic.work(chip, q.shape, k.shape)
  rows, ends, plan = mosaic.pack(q, k_end, sizes, chip.block)
  lead = (sizes.batch, sizes.heads, sizes.parts, sizes.rows)
  kind = q.dtype if sizes.parts == 1 else jnp.dtype(jnp.float32)
  out, lse = plgpu.kernel(
    functools.partial(_body, compute, chip, sizes),
    out_type=(
      jax.ShapeDtypeStruct((*lead, sizes.dim), kind),
      jax.ShapeDtypeStruct((*lead[:-1], sizes.tiles * sizes.tile), jnp.float32),
    ),
    scratch_types={"ring": _ring(chip, sizes, q.dtype)}
    | scratch(chip, sizes, q.dtype, kind)
    | more(sizes),
    grid=(sizes.splits, sizes.tiles, sizes.heads, sizes.batch),
    grid_names=GRID,
    num_threads=mosaic.WARPGROUPS + 1,
    thread_name=THREADS,
    compiler_params=plgpu.CompilerParams(approx_math=True),
    interpret=interpret,
    kernel_name="range_attention",
  )(rows, k, v, ends, plan)
  return mosaic.join(out, lse, sizes, q.dtype)


def _body(
  compute, chip, sizes, q, k, v, ends, plan, out, lse, *, ring, **scratch
):
  span = _span(plan, sizes.splits)
  warpgroup = lax.axis_index(THREADS)

  @pl.when(warpgroup < mosaic.WARPGROUPS)
  def _():
    plgpu.set_max_registers(chip.compute_registers, action="increase")
    place = _place(chip, sizes)
    compute(sizes, span, place, q, ends, out, lse, ring, **scratch)

  @pl.when(warpgroup == mosaic.WARPGROUPS)
  def _():
    plgpu.set_max_registers(chip.load_registers, action="decrease")
    _load(ring, k, v, span, block=chip.block, stages=sizes.stages)


def shared(shape: tuple[int, ...], dtype):
  """Shared memory in the tiles and the swizzle that TMA and MMA work in."""
  size = jnp.dtype(dtype).itemsize
  swizzle = min(128, shape[-1] * size)
  tiling = plgpu.TilingTransform((mosaic.ALIGN, swizzle // size))
  transforms = tiling, plgpu.SwizzleTransform(swizzle)
  return plgpu.SMEM(shape, dtype, transforms=transforms)


def scratch(chip: Chip, sizes: Work, dtype, kind) -> dict[str, Any]:
  """The scratch types of both chips; kind is the dtype of the results."""
  own = (mosaic.WARPGROUPS, chip.rows)
  columns = min(sizes.dim, chip.out_bytes // kind.itemsize)
  return {
    "queries": shared((sizes.row_groups, chip.rows, sizes.dim), dtype),
    "weights": shared((*own, chip.block), dtype),
    "sums": shared((*own, columns), kind),
    "logs": plgpu.SMEM(own, jnp.float32),
    "loaded": plgpu.Barrier(num_barriers=sizes.row_groups),
  }


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ring:
  """Tiles of K and V, and the barriers that pass them back and forth.

  References inside the kernel; scratch types where the kernel is launched.

  Attributes:
    k: [stages, block, H].
    v: [stages, block, H].
    k_full: a tile of K has landed.
    v_full: a tile of V has landed and holds no key that must not be read.
    k_free: every reader is done with a tile of K.
    v_free: the same for V.
    landed: the last tile of V has landed, and is yet to be cleaned.
  """

  k: Any
  v: Any
  k_full: Any
  v_full: Any
  k_free: Any
  v_free: Any
  landed: Any


def _ring(chip: Chip, sizes: Work, dtype) -> Ring:
  """The scratch types of a ring."""
  tiles = shared((sizes.stages, chip.block, sizes.dim), dtype)
  full = plgpu.Barrier(num_barriers=sizes.stages)
  free = plgpu.Barrier(num_arrivals=sizes.row_groups, num_barriers=sizes.stages)
  return Ring(tiles, tiles, full, full, free, free, plgpu.Barrier())


@dataclasses.dataclass(frozen=True)
class Span:
  """The tiles of keys of one thread block: [first, last), `full` unmasked.

  Attributes:
    first: its first tile.
    last: one past its last tile.
    full: one past the last tile that needs no mask, within the two.
    end: one past the last tile of the whole row.
    limit: one past the last key of the whole row.
  """

  first: jax.Array
  last: jax.Array
  full: jax.Array
  end: jax.Array
  limit: jax.Array


def _span(plan, splits: int) -> Span:
  """Reads the span of this thread block; splits differ by at most one tile."""
  at = lax.axis_index("batch"), lax.axis_index("tile")
  split = lax.axis_index("split")
  end, full, limit = (plan[(*at, i)] for i in range(3))
  first = lax.div(split * end, splits)
  last = lax.div((split + 1) * end, splits)
  return Span(first, last, lax.clamp(first, full, last), end, limit)


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a compute warpgroup reads and writes.

  Attributes:
    rows: its rows of the packed queries.
    ends: its rows of the packed k_end.
    parts: its rows of the partial results.
    side: which of the queries in shared memory are its own.
    turn: the first tile of the span that it uses.
  """

  rows: tuple
  ends: tuple
  parts: tuple
  side: jax.Array
  turn: jax.Array


def _place(chip: Chip, sizes: Work) -> Place:
  """The place of this warpgroup."""
  batch, head = lax.axis_index("batch"), lax.axis_index("head")
  warpgroup = lax.axis_index(THREADS)
  side, turn = warpgroup, jnp.int32(0)
  if sizes.row_groups == 1:
    side, turn = turn, side
  start = lax.axis_index("tile") * sizes.tile + side * chip.rows
  rows = pl.ds(start, chip.rows)
  part = lax.axis_index("split") * sizes.key_groups + turn
  return Place(
    rows=(batch, head, rows), ends=(batch, rows),
    parts=(batch, head, part, rows), side=side, turn=turn,
  )  # fmt: skip


def fetch(q, queries, loaded, place: Place):
  """Loads the queries of a warpgroup, once for two that take turns."""
  mine = queries.at[place.side]
  loaded = loaded.at[place.side]

  @pl.when(place.turn == 0)
  def _():
    plgpu.copy_gmem_to_smem(q.at[place.rows], mine, loaded)

  plgpu.barrier_wait(loaded)
  return mine


def store(acc, log, sums, logs, out, lse, place: Place, dim: int):
  """Writes a warpgroup's output and lse, by way of `sums` and `logs`.

  Args:
    acc: (start, width) -> columns of the output.
    log: log-sum-exp of each row.
    sums: shared memory for some columns of the output.
    logs: shared memory for `log`.
    out: partial results, [B, K, parts, R, H].
    lse: [B, K, parts, tiles * tile]: this store is one run of bytes, which
      the chip cuts nowhere but at the end of the whole array.
    place: of the warpgroup.
    dim: H.

  Raises:
    ValueError: a row of lse does not hold whole stores.
  """
  if lse.shape[-1] % logs.shape[-1]:
    raise ValueError(
      f"a row of lse should hold whole stores of {logs.shape[-1]}, got"
      f" {lse.shape[-1]}: the rest would land in the next row."
    )
  logs[...] = log
  plgpu.commit_smem()
  plgpu.copy_smem_to_gmem(logs, lse.at[place.parts])
  width = sums.shape[1]
  for at in range(0, dim, width):
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    sums[...] = acc(at, width).astype(sums.dtype)
    plgpu.commit_smem()
    columns = (*place.parts, pl.ds(at, width))
    plgpu.copy_smem_to_gmem(sums, out.at[columns])
  plgpu.wait_smem_to_gmem(0)


def turns(span: Span, turn, key_groups: int) -> tuple[jax.Array, jax.Array]:
  """How many tiles a warpgroup uses: those without a mask, and all."""
  count = lambda n: lax.div(n - turn + key_groups - 1, key_groups)
  return count(span.full - span.first), count(span.last - span.first)


def _load(ring: Ring, keys, values, span: Span, *, block: int, stages: int):
  """Fills the ring with the tiles of a span, then waits until all are used.

  The last tile of a row may hold values beyond its last key. They would meet
  a weight of zero, but zero times NaN is NaN: they are overwritten first.
  """
  batch, head = lax.axis_index("batch"), lax.axis_index("head")
  dirty = (span.last == span.end) & (lax.rem(span.limit, block) != 0)

  def wait(i, _=None):
    slot = lax.rem(i, stages)
    plgpu.barrier_wait(ring.k_free.at[slot])
    plgpu.barrier_wait(ring.v_free.at[slot])

  def step(i, _):
    slot = lax.rem(i, stages)
    pl.when(i >= stages)(lambda: wait(i))
    start = (span.first + i) * block
    tile = batch, pl.ds(start, block), head
    plgpu.copy_gmem_to_smem(
      keys.at[tile], ring.k.at[slot], ring.k_full.at[slot]
    )
    clean = (span.first + i + 1 != span.last) | ~dirty

    @pl.when(clean)
    def _():
      plgpu.copy_gmem_to_smem(
        values.at[tile], ring.v.at[slot], ring.v_full.at[slot]
      )

    @pl.when(~clean)
    def _():
      plgpu.copy_gmem_to_smem(values.at[tile], ring.v.at[slot], ring.landed)
      plgpu.barrier_wait(ring.landed)
      _clear(ring.v.at[slot], span.limit - start)
      plgpu.barrier_arrive(ring.v_full.at[slot])

  count = span.last - span.first
  lax.fori_loop(0, count, step, None)
  lax.fori_loop(lax.max(0, count - stages), count, wait, None)


def _clear(tile, valid):
  """Writes zeros over the rows from `valid` on."""
  block, dim = tile.shape
  rows = plgpu.broadcasted_iota(
    jnp.int32, (block, 64), 0, layout=plgpu.Layout.WGMMA
  )
  for at in range(0, dim, 64):  # By halves: a loader has few registers.
    half = tile.at[:, pl.ds(at, 64)]
    old = plgpu.load(half, layout=plgpu.Layout.WGMMA)
    half[...] = jnp.where(rows < valid, old, jnp.zeros_like(old))
  plgpu.commit_smem()


def softmax(scores, peak, total, dim: int, mask=None):
  """One step of the online softmax over a tile of raw scores [rows, block].

  Args:
    scores: q @ k, without the scale.
    peak: running maximum, in units of log2.
    total: running sum of weights.
    dim: head dimension, for the scale.
    mask: keys of the tile that each row sees; None where all see all.

  Returns:
    The weights, the factor for what was summed before, and the new maximum
    and sum.
  """
  scores = scores * (math.log2(math.e) / math.sqrt(dim))
  if mask is not None:
    scores = jnp.where(mask, scores, MASKED)
  peak_now = jnp.maximum(peak, scores.max(axis=1))
  weights = jnp.exp2(scores - lax.broadcast_in_dim(peak_now, scores.shape, [0]))
  decay = jnp.exp2(peak - peak_now)
  return weights, decay, peak_now, total * decay + weights.sum(axis=1)


def log_sum(peak, total):
  """Natural log-sum-exp of a finished softmax; -inf where it is empty."""
  some = jnp.where(total > 0, total, 1.0)
  value = (peak + jnp.log2(some)) * math.log(2)
  return jnp.where(total > 0, value, -jnp.inf)
