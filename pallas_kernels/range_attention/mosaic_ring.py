"""The ring of a thread block: tiles of K and V on their way to the MMAs."""

import dataclasses
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
from pallas_kernels.range_attention.mosaic_item import Item


def shared(shape: tuple[int, ...], dtype):
  """Shared memory in the tiles and the swizzle that TMA and MMA work in."""
  size = jnp.dtype(dtype).itemsize
  swizzle = min(128, shape[-1] * size)
  tiling = plgpu.TilingTransform((mosaic.ALIGN, swizzle // size))
  transforms = tiling, plgpu.SwizzleTransform(swizzle)
  return plgpu.SMEM(shape, dtype, transforms=transforms)


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


def types(chip: Chip, sizes: Work, dtype) -> Ring:
  """The scratch types of a ring."""
  tiles = shared((sizes.stages, chip.block, sizes.dim), dtype)
  full = plgpu.Barrier(num_barriers=sizes.stages)
  free = plgpu.Barrier(num_arrivals=sizes.row_groups, num_barriers=sizes.stages)
  return Ring(tiles, tiles, full, full, free, free, plgpu.Barrier())


def load(ring: Ring, keys, values, table, each: Callable) -> None:
  """Fills the ring with the tiles of every item, then waits for their use.

  The last tile of a row may hold values beyond its last key. They would meet
  a weight of zero, but zero times NaN is NaN: they are overwritten first.

  Args:
    ring: of the thread block.
    keys: [P, page, K, H].
    values: [P, page, K, H].
    table: [B, M] pages of each row; a tile of keys lies within one.
    each: visits the items of this block, and returns how many tiles they have.
  """
  stages, block = ring.k.shape[:2]
  pages, size = keys.shape[:2]
  head = lax.axis_index("head")

  def step(item: Item, j):
    i, n = item.done + j, item.first + j
    slot, again = lax.rem(i, stages), i >= stages
    # Looked up before the wait: the two take their time together.
    page = table[item.batch, lax.div(n * block, size)]
    start = pl.ds(lax.rem(n * block, size), block)
    tile = lax.min(page, pages - 1), start, head
    pl.when(again)(lambda: plgpu.barrier_wait(ring.k_free.at[slot]))
    plgpu.copy_gmem_to_smem(
      keys.at[tile], ring.k.at[slot], ring.k_full.at[slot]
    )
    pl.when(again)(lambda: plgpu.barrier_wait(ring.v_free.at[slot]))
    partial = n == lax.div(item.limit, block)

    @pl.when(~partial)
    def _():
      plgpu.copy_gmem_to_smem(
        values.at[tile], ring.v.at[slot], ring.v_full.at[slot]
      )

    @pl.when(partial)
    def _():
      plgpu.copy_gmem_to_smem(values.at[tile], ring.v.at[slot], ring.landed)
      plgpu.barrier_wait(ring.landed)
      _clear(ring.v.at[slot], lax.rem(item.limit, block))
      plgpu.barrier_arrive(ring.v_full.at[slot])

  def visit(item: Item):
    lax.fori_loop(0, item.last - item.first, lambda j, _: step(item, j), None)

  def drain(i, _):
    plgpu.barrier_wait(ring.k_free.at[lax.rem(i, stages)])
    plgpu.barrier_wait(ring.v_free.at[lax.rem(i, stages)])

  count = each(visit)
  lax.fori_loop(lax.max(0, count - stages), count, drain, None)


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
