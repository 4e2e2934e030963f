"""Who attends to what: the keys of a pass, dealt out to the thread blocks.

The tiles of keys of all tiles of rows stand in one line. It is cut into equal
shares, one for each thread block of a key head, whatever the rows' lengths.
An item is what one block does for one tile of rows. A plan follows from k_end
alone: it is equal in every layer of a model, so XLA makes it once per pass.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from pallas_kernels.range_attention.mosaic import Work


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
  """The items of a pass, and where the partial results of a tile are.

  Attributes:
    items: tile of rows (batch * tiles + tile), first tile of keys, one past
      the last, how many from 0 on need no mask, and one past the last key.
      Item i + t is that of block i and tile t of rows; no keys: not one.
    shares: the first item of each block; the last entry ends the last block.
    pieces: first item of each tile of rows, and how many; 0: it sees no key.
  """

  items: Int[Array, "items 5"]
  shares: Int[Array, "blocks+1"]
  pieces: Int[Array, "tiles 2"]


def plan(ends: Int[Array, "B rows"], sizes: Work, block: int) -> Plan:
  """Cuts a pass into equal shares; they differ by at most one tile of keys.

  Args:
    ends: one past the last key of each row, 0 to S, in whole tiles of rows.
    sizes: of the call.
    block: keys per tile.
  """
  by_tile = ends.reshape(-1, sizes.tile)
  limit, full = by_tile.max(-1), by_tile.min(-1) // block
  count = (limit + block - 1) // block
  tiles, blocks = count.size, sizes.blocks
  start = jnp.pad(jnp.cumsum(count), (1, 0))
  each, more = start[-1] // blocks, start[-1] % blocks
  at = jnp.arange(blocks + 1)
  cut = at * each + jnp.minimum(at, more)
  # A block starts in the last tile of rows that starts no later.
  first = jnp.arange(blocks) + _counted(start[None, 1:-1] <= cut[:-1, None])
  shares = jnp.append(first, sizes.items)
  item = jnp.arange(sizes.items)
  owner = _counted(first[None, 1:] <= item[:, None])
  rows = item - owner
  low = jnp.maximum(cut[owner], start[rows])
  high = jnp.minimum(cut[owner + 1], start[rows + 1])
  low, high = low - start[rows], high - start[rows]
  items = jnp.stack([rows, low, high, full[rows], limit[rows]], -1)
  head = _counted(cut[None, 1:-1] <= start[:-1, None])
  tail = _counted(cut[None, 1:-1] < start[1:, None])
  pieces = jnp.where(count > 0, tail - head + 1, 0)
  pieces = jnp.stack([head + jnp.arange(tiles), pieces], -1)
  return Plan(*(x.astype(jnp.int32) for x in (items, shares, pieces)))


def _counted(x):
  return x.sum(-1, dtype=jnp.int32)
