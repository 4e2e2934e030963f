"""The walk of a thread block through its items, the same in all warpgroups."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.range_attention.mosaic import Work


@dataclasses.dataclass(frozen=True)
class Item:
  """Tiles of keys for one tile of rows: [first, last), `full` unmasked.

  Attributes:
    batch: row of the batch.
    tile: of rows, within the row of the batch.
    part: the item's number, where its partial result goes.
    first: its first tile.
    last: one past its last tile.
    full: one past the last tile that needs no mask, within the two.
    limit: one past the last key that any row of the tile sees.
    done: tiles that this block has used before.
  """

  batch: jax.Array
  tile: jax.Array
  part: jax.Array
  first: jax.Array
  last: jax.Array
  full: jax.Array
  limit: jax.Array
  done: jax.Array


def each_item(sizes: Work, items, shares, visit: Callable) -> jax.Array:
  """Visits the items of this thread block; returns how many tiles it used."""
  block = lax.axis_index("block")

  def step(i, done):
    rows, first, last, full, limit = (items[i, n] for n in range(5))

    @pl.when(first < last)
    def _():
      batch, tile = lax.div(rows, sizes.tiles), lax.rem(rows, sizes.tiles)
      full_here = lax.clamp(first, full, last)
      visit(Item(batch, tile, i, first, last, full_here, limit, done))

    return done + last - first

  return lax.fori_loop(shares[block], shares[block + 1], step, jnp.int32(0))


def turns(item: Item, turn, key_groups: int) -> tuple[jax.Array, jax.Array]:
  """How many tiles a warpgroup uses: those without a mask, and all."""
  count = lambda n: lax.div(n - turn + key_groups - 1, key_groups)
  return count(item.full - item.first), count(item.last - item.first)
