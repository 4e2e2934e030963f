"""The dense term of a block with itself, and the exact merge of two terms."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.range_attention.chunks import product


def local_attention(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B T K H"],
  v: Float[Array, "B T K H"],
  block: int,
  *,
  causal: bool = False,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
  """Attends each block of `block` positions to itself, in both directions.

  Args:
    q: queries; T is a multiple of block.
    k: keys of the same positions.
    v: values of the same positions.
    block: positions per block.
    causal: a position sees those up to itself only.

  Returns:
    Output in the dtype of q, and log-sum-exp in float32 (or float64).

  Raises:
    ValueError: T is not a multiple of block.
  """
  batch, queries, heads, dim = q.shape
  if block < 1 or queries % block:
    raise ValueError(f"the {queries} queries should be a multiple of {block=}.")
  kv_heads = k.shape[2]
  rows = batch * (queries // block)
  q = q.reshape(rows, block, kv_heads, heads // kv_heads, dim)
  k, v = (x.reshape(rows, block, kv_heads, dim) for x in (k, v))
  scores = product("btkgh,bskh->btkgs", q, k)
  scores = scores * jnp.asarray(dim**-0.5, scores.dtype)
  if causal:
    seen = jnp.tril(jnp.ones((block, block), bool))
    scores = jnp.where(seen[None, :, None, None], scores, -jnp.inf)
  peak = scores.max(-1, keepdims=True)
  weights = jnp.exp(scores - peak)
  total = weights.sum(-1, keepdims=True)
  out = product("btkgs,bskh->btkgh", (weights / total).astype(v.dtype), v)
  lse = peak + jnp.log(total)
  out = out.reshape(batch, queries, heads, dim).astype(q.dtype)
  return out, lse.reshape(batch, queries, heads)


def merge(
  out_a: Float[Array, "*rows H"],
  lse_a: Float[Array, "*rows"],
  out_b: Float[Array, "*rows H"],
  lse_b: Float[Array, "*rows"],
) -> tuple[Float[Array, "*rows H"], Float[Array, "*rows"]]:
  """Joins attention over two disjoint sets of keys into one.

  Equals attention over the union. Two empty terms (lse = -inf) give out = 0,
  lse = -inf.
  """
  peak = jnp.maximum(lse_a, lse_b)
  safe = lax.stop_gradient(jnp.where(jnp.isneginf(peak), 0.0, peak))
  a, b = jnp.exp(lse_a - safe), jnp.exp(lse_b - safe)
  total = a + b
  empty = total == 0
  total = jnp.where(empty, 1.0, total)
  out = (
    out_a.astype(a.dtype) * (a / total)[..., None]
    + out_b.astype(a.dtype) * (b / total)[..., None]
  )
  lse = jnp.where(empty, -jnp.inf, safe + jnp.log(total))
  return out.astype(out_a.dtype), lse
