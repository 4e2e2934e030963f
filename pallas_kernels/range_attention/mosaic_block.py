"""A thread block of the Mosaic kernels: what the chips have in common.

It stays and works through its items. One warpgroup loads tiles of K and V by
TMA into a ring in shared memory, from one item to the next without a stop; two
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

from pallas_kernels.range_attention import mosaic, mosaic_plan, mosaic_ring
from pallas_kernels.range_attention.config import Chip
from pallas_kernels.range_attention.mosaic import Work
from pallas_kernels.range_attention.mosaic_item import Item, each_item
from pallas_kernels.range_attention.mosaic_merge import merge
from pallas_kernels.range_attention.mosaic_ring import shared

MASKED = -1e30
FLOOR = -1e20  # The running maximum starts here: exp2(MASKED - FLOOR) is 0.
THREADS = "warpgroup"


def launch(
  compute: Callable,
  more: Callable,
  chip: Chip,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  k_end: jax.Array,
  table: jax.Array,
  interpret: plgpu.InterpretGPUParams | None,
) -> tuple[jax.Array, jax.Array]:
  """Packs the queries, runs the kernel and merges its partial results.

  Args:
    compute: what a compute warpgroup does for an item: takes the static sizes,
      the `Item`, the `Place`, the packed queries and ends, the two outputs,
      the ring and its scratch.
    more: static sizes -> scratch types by name, over those of `scratch`.
    chip: static sizes.
    q: [B, T, N, H].
    k: [P, page, K, H].
    v: [P, page, K, H].
    k_end: [B, T] int32.
    table: [B, M] int32.
    interpret: runs the kernel on the CPU.

  Returns:
    The output and the log-sum-exp; see `api`.

  Raises:
    NotImplementedError: see `mosaic.unsupported`.
  """
  shape = (len(table), table.shape[1] * k.shape[1], *k.shape[2:])
  if reason := mosaic.unsupported(q.shape, shape, q.dtype):
    raise NotImplementedError(f"the Mosaic kernel cannot serve it: {reason}.")
  sizes = mosaic.work(chip, q.shape, shape)
  rows, ends = mosaic.pack(q, k_end, sizes)
  plan = mosaic_plan.plan(ends, sizes, chip.block)
  lead = (sizes.heads, sizes.parts)
  stored = min(sizes.rows, sizes.tile)
  out, lse = plgpu.kernel(
    functools.partial(_body, compute, chip, sizes),
    out_type=(
      jax.ShapeDtypeStruct((*lead, stored, sizes.dim), jnp.float32),
      jax.ShapeDtypeStruct((*lead, sizes.tile), jnp.float32),
    ),
    scratch_types={"ring": mosaic_ring.types(chip, sizes, q.dtype)}
    | scratch(chip, sizes, q.dtype)
    | more(sizes),
    grid=(sizes.blocks, sizes.heads),
    grid_names=("block", "head"),
    num_threads=mosaic.WARPGROUPS + 1,
    thread_name=THREADS,
    compiler_params=plgpu.CompilerParams(approx_math=True),
    interpret=interpret,
    kernel_name="range_attention",
  )(rows, k, v, table, ends, plan.items, plan.shares)
  return merge(out, lse, plan.pieces, sizes, q.dtype, interpret)


def _body(
  compute, chip, sizes, q, k, v, table, ends, items, shares, out, lse,
  *, ring, **scratch,
):  # fmt: skip
  warpgroup = lax.axis_index(THREADS)
  each = functools.partial(each_item, sizes, items, shares)

  @pl.when(warpgroup < mosaic.WARPGROUPS)
  def _():
    plgpu.set_max_registers(chip.compute_registers, action="increase")

    def visit(item):
      place = _place(chip, sizes, item)
      compute(sizes, item, place, q, ends, out, lse, ring, **scratch)

    each(visit)
    plgpu.wait_smem_to_gmem(0)

  @pl.when(warpgroup == mosaic.WARPGROUPS)
  def _():
    plgpu.set_max_registers(chip.load_registers, action="decrease")
    mosaic_ring.load(ring, k, v, table, each)


def scratch(chip: Chip, sizes: Work, dtype) -> dict[str, Any]:
  """The scratch types of both chips."""
  own = (mosaic.WARPGROUPS, chip.rows)
  columns = min(sizes.dim, chip.out_bytes // 4)
  return {
    "queries": shared((sizes.row_groups, chip.rows, sizes.dim), dtype),
    "weights": shared((*own, chip.block), dtype),
    "sums": shared((*own, columns), jnp.float32),
    "logs": plgpu.SMEM(own, jnp.float32),
    "q_full": plgpu.Barrier(num_barriers=sizes.row_groups),
    "q_free": plgpu.Barrier(
      num_arrivals=sizes.key_groups, num_barriers=sizes.row_groups
    ),
  }


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a compute warpgroup reads and writes for an item.

  Attributes:
    rows: its rows of the packed queries.
    ends: its rows of the packed k_end.
    part: its rows of the partial results.
    side: which of the queries in shared memory are its own.
    leads: whether it loads these queries.
    turn: the first tile of the item that it uses.
  """

  rows: tuple
  ends: tuple
  part: tuple
  side: jax.Array
  leads: jax.Array
  turn: jax.Array


def _place(chip: Chip, sizes: Work, item: Item) -> Place:
  """The place of this warpgroup.

  Those that take turns over the tiles go on in turns from item to item, so
  each always meets the same slots of the ring.
  """
  head, warpgroup = lax.axis_index("head"), lax.axis_index(THREADS)
  side, own = warpgroup, jnp.int32(0)
  if sizes.row_groups == 1:
    side, own = own, side
  start = side * chip.rows
  rows = pl.ds(item.tile * sizes.tile + start, chip.rows)
  part = item.part * sizes.key_groups + own
  return Place(
    rows=(item.batch, head, rows), ends=(item.batch, rows),
    part=(head, part, pl.ds(start, chip.rows)), side=side, leads=own == 0,
    turn=lax.rem(own + item.done, sizes.key_groups),
  )  # fmt: skip


def fetch(q, queries, q_full, place: Place):
  """Loads the queries of a warpgroup, once for two that take turns."""
  mine, q_full = queries.at[place.side], q_full.at[place.side]

  @pl.when(place.leads)
  def _():
    plgpu.copy_gmem_to_smem(q.at[place.rows], mine, q_full)

  plgpu.barrier_wait(q_full)
  return mine


def release(q_free, place: Place):
  """Ends the use of the queries: the next may be loaded when all have."""
  q_free = q_free.at[place.side]
  plgpu.barrier_arrive(q_free)
  pl.when(place.leads)(lambda: plgpu.barrier_wait(q_free))


def store(acc, log, sums, logs, out, lse, place: Place, dim: int):
  """Writes a warpgroup's output and lse, by way of `sums` and `logs`.

  Args:
    acc: (start, width) -> columns of the output.
    log: log-sum-exp of each row, in units of log2.
    sums: shared memory for some columns of the output.
    logs: shared memory for `log`.
    out: partial results, [K, parts, R, H].
    lse: [K, parts, tile]: this store is one run of bytes, which the chip cuts
      nowhere but at the end of the whole array.
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
  logs[...] = log  # Free: its last store was awaited below, before `sums`.
  plgpu.commit_smem()
  plgpu.copy_smem_to_gmem(logs, lse.at[place.part])
  width = sums.shape[1]
  for at in range(0, dim, width):
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    sums[...] = acc(at, width)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(sums, out.at[(*place.part, pl.ds(at, width))])


def softmax(scores, peak, total, dim: int, mask=None):
  """One step of the online softmax over a tile of raw scores [rows, block].

  The scale meets the scores after the maximum: one multiply-add for the two.

  Args:
    scores: q @ k, without the scale.
    peak: running maximum of the raw scores.
    total: running sum of weights.
    dim: head dimension, for the scale.
    mask: keys of the tile that each row sees; None where all see all.

  Returns:
    The weights, the factor for what was summed before, and the new maximum
    and sum.
  """
  if mask is not None:
    scores = jnp.where(mask, scores, MASKED)
  peak_now = jnp.maximum(peak, scores.max(axis=1))
  shift = lax.broadcast_in_dim(peak_now * _scale(dim), scores.shape, [0])
  weights = jnp.exp2(scores * _scale(dim) - shift)
  decay = jnp.exp2((peak - peak_now) * _scale(dim))
  return weights, decay, peak_now, total * decay + weights.sum(axis=1)


def log_sum(peak, total, dim: int):
  """log2 of the sum of a finished softmax; -inf where it is empty."""
  some = jnp.where(total > 0, total, 1.0)
  value = peak * _scale(dim) + jnp.log2(some)
  return jnp.where(total > 0, value, -jnp.inf)


def _scale(dim: int) -> float:
  """From raw scores to units of log2."""
  return math.log2(math.e) / math.sqrt(dim)
