"""Chunks of keys, turns of queries, and products, of attention in plain JAX."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

CHUNK = 128  # Keys per step: small enough that a chunk stays in cache.
QUERIES = 128  # Likewise on a CPU: queries per turn, each with its own keys.
# Queries per turn and keys per step of training off the CPU: as many scores at
# a time as 8192 queries have with 128 keys.
WIDE = 2048, 512


def accumulator(dtype) -> jnp.dtype:
  """The dtype to sum in: float32, or float64 for float64."""
  return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def matmul_precision(dtype) -> lax.Precision:
  """Float32 stays float32 on GPUs too (no TF32), so that modes agree."""
  low = dtype in (jnp.bfloat16, jnp.float16)
  return lax.Precision.DEFAULT if low else lax.Precision.HIGHEST


def product(spec: str, a: Array, b: Array) -> Array:
  """The einsum of two arrays of one dtype, in the accumulator's dtype."""
  return jnp.einsum(
    spec,
    a,
    b,
    precision=matmul_precision(a.dtype),
    preferred_element_type=accumulator(a.dtype),
  )


def cut(x: Array, turn: int) -> Array:
  """[B, T, ...] -> [turns, B, turn, ...]; fill is 0, and sees nothing."""
  turn = min(turn, x.shape[1])
  more = -x.shape[1] % turn
  x = jnp.pad(x, ((0, 0), (0, more)) + ((0, 0),) * (x.ndim - 2))
  return jnp.moveaxis(x.reshape(x.shape[0], -1, turn, *x.shape[2:]), 1, 0)


def joined(tree, queries: int):
  """The inverse of `cut` for every array."""

  def one(x: Array) -> Array:
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :queries]

  return jax.tree.map(one, tree)


def group(x: Array, kv_heads: int) -> Array:
  """[B, T, N, ...] -> [B, K, T, G, ...]."""
  batch, queries, heads = x.shape[:3]
  shape = (batch, queries, kv_heads, heads // kv_heads, *x.shape[3:])
  return jnp.moveaxis(x.reshape(shape), 2, 1)


def scores_of(q: Array, k: Array) -> Array:
  """[B, K, T, G, S] of grouped queries and a chunk of keys."""
  scores = product("bktgh,bskh->bktgs", q, k)
  return scores * jnp.asarray(q.shape[-1] ** -0.5, scores.dtype)


def chunk_range(size: int, keys: int, k_end, k_start) -> tuple[Array, Array]:
  """The first chunk that a query sees, and one past the last."""
  return k_start.min() // size, chunks_to(k_end.max(), size, keys)


def chunks_to(k_end, size: int, keys: int) -> Array:
  """Chunks up to k_end, of so many keys in all."""
  return (jnp.minimum(k_end, keys) + size - 1) // size


def chunk_start(i, size: int, keys: int):
  """The last chunk is moved back so that it does not pass the end."""
  return jnp.minimum(i * size, keys - size)


def chunk(i, size: int, k, v, k_end, k_start, table=None, at_once: int = 1):
  """Chunk i of keys and values, with what lies beyond every query as zeros.

  With a table, as many chunks from i on of each row as are read at once.
  """
  if table is None:
    at = chunk_start(i, size, k.shape[1])
    k, v = (lax.dynamic_slice_in_dim(x, at, size, 1) for x in (k, v))
  else:  # A page is a chunk.
    at = i * size
    pages = lax.dynamic_slice_in_dim(table, i, at_once, 1).reshape(-1)
    k, v = (jnp.take(x, pages, 0, mode="clip") for x in (k, v))
  pos = (at + jnp.arange(size)).astype(k_end.dtype)
  fresh = pos >= i * size  # A moved chunk repeats keys of the one before.
  seen = fresh[None] & (pos[None] < k_end.max(1, keepdims=True))
  k, v = (jnp.where(seen[..., None, None], x, 0) for x in (k, v))
  low, high = k_start[..., None], k_end[..., None]
  pos = pos[None, None]
  mask = fresh[None, None] & (pos >= low) & (pos < high)  # [B, T, S]
  return k, v, mask[:, None, :, None, :]
