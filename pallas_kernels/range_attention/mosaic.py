"""What the Mosaic kernels share outside the kernel: plain JAX, runs anywhere.

The G query heads of a key head read the same keys, so the queries of one key
head are packed as T * G rows, cut into tiles. `mosaic_plan` deals the tiles of
keys that they attend to out to as many thread blocks as the chip holds.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.range_attention.config import Chip

DIMS = (64, 128)
MAX_GROUP = 8
ALIGN = 8  # Rows of one shared-memory tile: TMA reads whole ones.
MAX_KEYS = 2**31 - 2**16  # Positions and tile bounds are int32.
WARPGROUPS = 2  # That compute, in every thread block.
_BARRIERS = 3 * 1024  # And the scratch of reductions.
_MAX_STAGES = 8


def unsupported(
  q_shape: tuple[int, ...], k_shape: tuple[int, ...], dtype
) -> str | None:
  """Says why the kernels cannot serve a call, or None where they can.

  Args:
    q_shape: [B, T, N, H], already checked against k_shape.
    k_shape: [B, S, K, H].
    dtype: of q, k and v.
  """
  keys, dim = k_shape[1], q_shape[3]
  group = q_shape[2] // k_shape[2]
  if dtype != jnp.bfloat16:
    return f"q, k and v should be bfloat16, got {jnp.dtype(dtype).name}"
  if dim not in DIMS:
    return f"the head dimension should be one of {DIMS}, got {dim}"
  if not 1 <= group <= MAX_GROUP:
    return f"query heads per key head should be 1 to {MAX_GROUP}, got {group}"
  if keys % ALIGN:
    return f"the keys S should be a multiple of {ALIGN}, got {keys}"
  if keys < ALIGN:
    return f"the keys S should be at least {ALIGN}, got {keys}"
  if keys > MAX_KEYS:
    return f"the keys S should be at most {MAX_KEYS}, got {keys}"
  return None


@dataclasses.dataclass(frozen=True)
class Work:
  """The static sizes of one call.

  Attributes:
    batch: rows of the batch B.
    heads: key heads K.
    group: query heads per key head G.
    queries: queries T.
    keys: keys S.
    dim: head dimension H.
    row_groups: warpgroups side by side over rows: 2, or 1 where all rows fit
      one; the two then take turns over the tiles of keys.
    tile: rows that a thread block works on at a time.
    tiles: tiles of rows of one row of the batch.
    blocks: thread blocks for each key head; all run at once.
    stages: tiles of K and of V in the ring.
  """

  batch: int
  heads: int
  group: int
  queries: int
  keys: int
  dim: int
  row_groups: int
  tile: int
  tiles: int
  blocks: int
  stages: int

  @property
  def rows(self) -> int:
    """Rows per key head as stored: T * G, rounded up."""
    return -(-self.queries * self.group // ALIGN) * ALIGN

  @property
  def key_groups(self) -> int:
    """Warpgroups that take turns over the tiles of keys."""
    return WARPGROUPS // self.row_groups

  @property
  def items(self) -> int:
    """Bound of the pieces of work: each ends with a tile or with a block."""
    return self.batch * self.tiles + self.blocks - 1

  @property
  def parts(self) -> int:
    """Partial results: each is one softmax over a share of the keys."""
    return self.items * self.key_groups


def work(
  chip: Chip, q_shape: tuple[int, ...], k_shape: tuple[int, ...]
) -> Work:
  """Cuts a call into thread blocks so that they fill the chip."""
  batch, queries, heads, dim = q_shape
  keys, kv_heads = k_shape[1:3]
  group = heads // kv_heads
  row_groups = 1 if queries * group <= chip.rows else WARPGROUPS
  tile = row_groups * chip.rows
  tiles = math.ceil(queries * group / tile)
  most = batch * tiles * math.ceil(keys / chip.block)
  return Work(
    batch=batch, heads=kv_heads, group=group, queries=queries, keys=keys,
    dim=dim, row_groups=row_groups, tile=tile, tiles=tiles,
    blocks=min(max(chip.processors // kv_heads, 1), most),
    stages=_stages(chip, row_groups, dim),
  )  # fmt: skip


def _stages(chip: Chip, row_groups: int, dim: int) -> int:
  """Tiles of K and of V that fit beside queries, weights and output.

  Warpgroups that take turns meet the same slots in every round, because a
  barrier has to be waited for in each of its phases.
  """
  queries = row_groups * chip.rows * dim * 2
  weights = WARPGROUPS * chip.rows * chip.block * 2
  weights *= not chip.register_weights
  out = WARPGROUPS * chip.rows * (chip.out_bytes + 4)
  spare = chip.shared_bytes - queries - weights - out - _BARRIERS
  stages = min(spare // (2 * chip.block * dim * 2), _MAX_STAGES)
  turns = WARPGROUPS // row_groups
  return stages // turns * turns


def pack(
  q: Float[Array, "B T N H"], k_end: Int[Array, "B T"], sizes: Work
) -> tuple[Float[Array, "B K R H"], Int[Array, "B rows"]]:
  """Packs the queries of each key head as rows, whole tiles of them in k_end.

  Rows that fill up the last tile end where its last query does: they add no
  tile of keys, and no mask.
  """
  batch, queries = k_end.shape
  count = queries * sizes.group
  q = q.reshape(batch, queries, sizes.heads, sizes.group, sizes.dim)
  q = q.transpose(0, 2, 1, 3, 4).reshape(batch, sizes.heads, count, sizes.dim)
  q = jnp.pad(q, ((0, 0), (0, 0), (0, sizes.rows - count), (0, 0)))
  ends = jnp.repeat(jnp.clip(k_end, 0, sizes.keys), sizes.group, 1)
  spare = sizes.tiles * sizes.tile - count
  return q, jnp.pad(ends, ((0, 0), (0, spare)), mode="edge")
