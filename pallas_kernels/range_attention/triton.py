"""Range attention for GPUs that Mosaic does not serve, through jax-triton.

One program per tile of rows (the T * G queries of a key head), per share of
the keys and per key head. Shares are cut from the range that the tile really
attends to, and merged afterwards in plain JAX.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl
from jaxtyping import Array, Float, Int

_ROWS = (16, 64)  # Fewest and most rows of a tile.
_BLOCK = 64  # Keys per step.
_PROGRAMS = 256  # To be had at least: two per multiprocessor.
_MAX_SPLITS = 32


@functools.partial(jax.jit, static_argnames="capability")
def range_attention(
  q: Float[Array, "B T N H"],
  k: Float[Array, "P page K H"],
  v: Float[Array, "P page K H"],
  k_end: Int[Array, "B T"],
  table: Int[Array, "B M"],
  *,
  capability: str,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
  """See `api.range_attention`; arguments are checked, capability is '8.0'.

  A page holds whole steps of keys, or all keys of a row.
  """
  grid, sizes = launch(q.shape, k.shape, table.shape)
  splits = grid[1]
  out, lse = jax_triton.triton_call(
    q,
    k,
    v,
    k_end.astype(jnp.int32),
    table,
    kernel=kernel,
    out_shape=(
      jax.ShapeDtypeStruct((splits, *q.shape), jnp.float32),
      jax.ShapeDtypeStruct((splits, *q.shape[:3]), jnp.float32),
    ),
    grid=grid,
    num_warps=4,
    num_stages=2,
    compute_capability=int(capability.replace(".", "")),
    **sizes,
  )
  out, lse = join(out, lse)
  return out.astype(q.dtype), lse


def join(
  out: Float[Array, "shares B T N H"], lse: Float[Array, "shares B T N"]
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
  """Shares of the keys as one; a share without a key has lse = -inf."""
  peak = jnp.maximum(lse.max(0), -1e30)  # Finite where all shares are empty.
  weights = jnp.exp(lse - peak[None])
  total = weights.sum(0)
  out = (out * weights[..., None]).sum(0)
  out = out / jnp.where(total == 0, 1.0, total)[..., None]
  return out, peak + jnp.log(total)


def launch(
  q_shape: tuple[int, ...],
  pool_shape: tuple[int, ...],
  table_shape: tuple[int, ...],
) -> tuple[tuple[int, int, int], dict[str, Any]]:
  """The grid (tiles of rows, shares of the keys, B * K) and the constants."""
  batch, queries, heads, dim = q_shape
  pool, page, kv_heads, _ = pool_shape
  keys = table_shape[1] * page
  count = queries * (heads // kv_heads)
  rows = min(max(1 << (count - 1).bit_length(), _ROWS[0]), _ROWS[1])
  tiles = math.ceil(count / rows)
  wanted = math.ceil(_PROGRAMS / (tiles * batch * kv_heads))
  splits = min(wanted, math.ceil(keys / _BLOCK), _MAX_SPLITS)
  sizes = {
    "QUERIES": queries,
    "POOL": pool,
    "PAGE": page,
    "PAGES": table_shape[1],
    "KV_HEADS": kv_heads,
    "GROUP": heads // kv_heads,
    "DIM": dim,
    "ROWS": rows,
    "BLOCK": _BLOCK,
  }
  return (tiles, splits, batch * kv_heads), sizes


@triton.jit
def kernel(
  q,
  k,
  v,
  k_end,
  table,
  out,
  lse,
  QUERIES: tl.constexpr,
  POOL: tl.constexpr,
  PAGE: tl.constexpr,
  PAGES: tl.constexpr,
  KV_HEADS: tl.constexpr,
  GROUP: tl.constexpr,
  DIM: tl.constexpr,
  ROWS: tl.constexpr,
  BLOCK: tl.constexpr,
):
  """Writes out [splits, B, T, N, H] and lse [splits, B, T, N] of one share."""
  split = tl.program_id(1)
  batch = (tl.program_id(2) // KV_HEADS).to(tl.int64)
  head = tl.program_id(2) % KV_HEADS
  row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
  real = row < QUERIES * GROUP
  query = batch * QUERIES + row // GROUP  # Of B * T.
  cell = (query * KV_HEADS + head) * GROUP + row % GROUP  # Of B * T * N.
  end = tl.load(k_end + query, mask=real, other=0)
  end = tl.minimum(end, PAGES * PAGE)
  limit = tl.max(end, 0)
  share = tl.cdiv(tl.cdiv(limit, BLOCK), tl.num_programs(1)) * BLOCK
  first = split * share
  last = tl.minimum(first + share, limit)

  column = tl.arange(0, DIM)
  queries = tl.load(
    q + cell[:, None] * DIM + column[None], mask=real[:, None], other=0.0
  )
  scale = 1.4426950408889634 / tl.sqrt(DIM * 1.0)  # Scores in base 2.
  peak = tl.full([ROWS], -1e30, tl.float32)
  total = tl.zeros([ROWS], tl.float32)
  acc = tl.zeros([ROWS, DIM], tl.float32)
  for start in range(first, last, BLOCK):
    pos = start + tl.arange(0, BLOCK)
    number = start // PAGE
    page = tl.load(table + batch * PAGES + number)
    page = tl.minimum(page, POOL - 1).to(tl.int64)
    at = ((page - number) * PAGE + pos) * KV_HEADS + head
    inside = pos < last
    at = at[:, None] * DIM + column[None]
    keys = tl.load(k + at, mask=inside[:, None], other=0.0)
    values = tl.load(v + at, mask=inside[:, None], other=0.0)
    scores = tl.dot(queries, tl.trans(keys)) * scale
    seen = inside[None] & (pos[None] < end[:, None])
    scores = tl.where(seen, scores, -1e30)
    higher = tl.maximum(peak, tl.max(scores, 1))
    weights = tl.where(seen, tl.exp2(scores - higher[:, None]), 0.0)
    decay = tl.exp2(peak - higher)
    total = total * decay + tl.sum(weights, 1)
    acc = acc * decay[:, None] + tl.dot(weights.to(values.dtype), values)
    peak = higher

  some = total > 0
  safe = tl.where(some, total, 1.0)
  natural = (peak + tl.log2(safe)) * 0.6931471805599453
  cell += split.to(tl.int64) * tl.num_programs(2) * QUERIES * GROUP
  tl.store(
    out + cell[:, None] * DIM + column[None],
    acc / safe[:, None],
    mask=real[:, None],
  )
  tl.store(lse + cell, tl.where(some, natural, -float("inf")), mask=real)
