"""What the Mosaic kernels share outside the kernel: plain JAX, runs anywhere.

The G query heads of a key head read the same keys, so the queries of one key
head are packed as T * G rows. A tile of rows and a split of the keys make one
thread block. Splits are cut from the range that a tile really attends to, so
a short row in a large cache is spread over the chip like a long one.
"""

import dataclasses
import functools
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.range_attention.config import Chip

DIMS = (64, 128)
MAX_GROUP = 8
ALIGN = 8  # Rows of one shared-memory tile: TMA reads whole ones.
MAX_KEYS = 2**31 - 2**16  # Positions and tile bounds are int32.
MAX_SPLITS = 32
WARPGROUPS = 2  # That compute, in every thread block.
_TURN = 4  # Start and end of a thread block, in tiles of keys.


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
  if keys % ALIGN or keys < 1:
    return f"the keys S should be a multiple of {ALIGN}, got {keys}"
  if keys > MAX_KEYS:
    return f"the keys S should be at most {MAX_KEYS}, got {keys}"
  return None


def check(q: Array, k: Array, v: Array, k_end: Array) -> None:
  """Raises for arguments that the kernels cannot serve.

  Raises:
    ValueError: shapes or dtypes that do not fit each other.
    NotImplementedError: a call that another implementation can serve.
  """
  if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
    raise ValueError(
      "q should be [B, T, N, H] and k, v equal [B, S, K, H], got"
      f" {q.shape=}, {k.shape=}, {v.shape=}."
    )
  if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
    raise ValueError(
      f"q and k should agree in B and H, got {q.shape=}, {k.shape=}."
    )
  if k.shape[2] == 0 or q.shape[2] % k.shape[2]:
    raise ValueError(
      f"the {q.shape[2]} query heads should be a multiple of the"
      f" {k.shape[2]} key heads."
    )
  if not q.dtype == k.dtype == v.dtype:
    raise ValueError(
      f"q, k and v should share one dtype, got {q.dtype}, {k.dtype}, {v.dtype}."
    )
  if k_end.shape != q.shape[:2] or k_end.dtype != jnp.int32:
    raise ValueError(
      f"k_end should be int32 of shape {q.shape[:2]}, got"
      f" {k_end.dtype}{k_end.shape}."
    )
  if reason := unsupported(q.shape, k.shape, q.dtype):
    raise NotImplementedError(f"The Mosaic kernel: {reason}.")


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
    tile: rows of a thread block.
    tiles: thread blocks over the rows.
    splits: thread blocks over the keys.
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
  splits: int
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
  def parts(self) -> int:
    """Partial results per row: each is one softmax over a share of the keys."""
    return self.splits * self.key_groups


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
  key_tiles = math.ceil(keys / chip.block)
  blocks = batch * kv_heads * tiles

  def time(splits):
    turns = math.ceil(blocks * splits / chip.processors)
    return turns * (math.ceil(key_tiles / splits) + _TURN)

  return Work(
    batch=batch, heads=kv_heads, group=group, queries=queries, keys=keys,
    dim=dim, row_groups=row_groups, tile=tile, tiles=tiles,
    splits=min(range(1, min(key_tiles, MAX_SPLITS) + 1), key=time),
    stages=chip.ring_bytes // (2 * chip.block * dim * 2),
  )  # fmt: skip


def pack(
  q: Float[Array, "B T N H"], k_end: Int[Array, "B T"], sizes: Work, block: int
) -> tuple[
  Float[Array, "B K R H"], Int[Array, "B rows"], Int[Array, "B tiles 3"]
]:
  """Packs the queries of each key head as rows, and bounds their keys.

  Returns:
    The queries as rows; k_end of each row; and per tile of rows how many
    tiles of keys it reads, how many of these need no mask, and one past the
    last key it reads. The last two are equal in every layer of a model: XLA
    computes them once.
  """
  batch, queries = k_end.shape
  count = queries * sizes.group
  q = q.reshape(batch, queries, sizes.heads, sizes.group, sizes.dim)
  q = q.transpose(0, 2, 1, 3, 4).reshape(batch, sizes.heads, count, sizes.dim)
  q = jnp.pad(q, ((0, 0), (0, 0), (0, sizes.rows - count), (0, 0)))
  ends = jnp.repeat(jnp.clip(k_end, 0, sizes.keys), sizes.group, 1)
  spare = sizes.tiles * sizes.tile - count
  ends = jnp.pad(ends, ((0, 0), (0, spare)), mode="edge")
  by_tile = ends.reshape(batch, sizes.tiles, sizes.tile)
  limit = by_tile.max(-1)
  plan = ((limit + block - 1) // block, by_tile.min(-1) // block, limit)
  return q, ends, jnp.stack(plan, -1)


def join(
  out: Float[Array, "B K P R H"],
  lse: Float[Array, "B K P R"],
  sizes: Work,
  dtype,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
  """Merges the partial results of each row and unpacks the rows.

  Written part by part: XLA then makes two kernels of it, one for the weights
  and lse, one for the weighted sum and its new order. A reduction over the
  axis P takes four.
  """
  outs, logs = ([x[:, :, i] for i in range(sizes.parts)] for x in (out, lse))
  if sizes.parts == 1:
    return _unpack(outs[0], sizes), _unpack(logs[0], sizes)
  # The least peak is finite, for rows whose parts are all empty.
  peak = functools.reduce(jnp.maximum, logs, jnp.full_like(logs[0], -1e30))
  weights = [jnp.exp(x - peak) for x in logs]
  total = sum(weights)
  scale = 1 / jnp.where(total == 0, 1.0, total)
  mean = sum(
    x * (w * scale)[..., None] for x, w in zip(outs, weights, strict=True)
  )
  lse = peak + jnp.log(total)
  return _unpack(mean.astype(dtype), sizes), _unpack(lse, sizes)


def _unpack(x: Array, sizes: Work) -> Array:
  """[B, K, R, ...] -> [B, T, N, ...]."""
  count = sizes.queries * sizes.group
  split = (sizes.batch, sizes.heads, sizes.queries, sizes.group, *x.shape[3:])
  x = jnp.moveaxis(x[:, :, :count].reshape(split), 1, 2)
  shape = (sizes.batch, sizes.queries, sizes.heads * sizes.group, *x.shape[4:])
  return x.reshape(shape)
