"""The gradient of range attention in plain JAX, of any implementation."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from pallas_kernels.range_attention.chunks import (
  CHUNK,
  QUERIES,
  WIDE,
  chunk,
  chunk_range,
  chunk_start,
  cut,
  group,
  joined,
  product,
  scores_of,
)


def backward(saved, cotangents):
  """The flash backward of any implementation; None for the integers.

  The cotangent of lse joins delta with a minus sign.

  Args:
    saved: q, k, v, k_end, k_start, table, out, lse.
    cotangents: of out and lse.

  Raises:
    NotImplementedError: there is a table.
  """
  q, k, v, k_end, k_start, table, out, lse = saved
  if table is not None:
    raise NotImplementedError(
      "range attention has no gradient with a table: train without pages."
    )
  queries = q.shape[1]
  rows = (q, k_end, k_start, out, lse, *cotangents)  # Each has the axis T.

  if queries <= QUERIES:
    dq, dk, dv = _backward(k, v, *rows)
  else:
    dq, dk, dv = lax.platform_dependent(
      *(k, v, *rows),
      cpu=functools.partial(_backward_in_turns, QUERIES, CHUNK),
      default=functools.partial(_backward_in_turns, *WIDE),
    )
  return dq, dk.astype(k.dtype), dv.astype(v.dtype), None, None, None


def _backward_in_turns(turn, size, k, v, *rows):
  acc = rows[-1].dtype

  def one(total, rows):
    dq, *more = _backward(k, v, *rows, size=size)
    return jax.tree.map(jnp.add, total, tuple(more)), dq

  zeros = (jnp.zeros(k.shape, acc), jnp.zeros(v.shape, acc))
  (dk, dv), dq = lax.scan(one, zeros, tuple(cut(x, turn) for x in rows))
  return joined(dq, rows[0].shape[1]), dk, dv


def _backward(k, v, q, k_end, k_start, out, lse, d_out, d_lse, size=CHUNK):
  """Gradients of q, and of k and v in the accumulator's dtype."""
  acc = lse.dtype
  size = min(size, k.shape[1])
  delta = (d_out.astype(acc) * out.astype(acc)).sum(-1)
  delta = delta - jnp.where(jnp.isneginf(lse), 0.0, d_lse)
  lse = jnp.where(jnp.isneginf(lse), 0.0, lse)
  heads = k.shape[2]
  q, d_out = group(q, heads), group(d_out, heads)
  delta, lse = (group(x[..., None], heads) for x in (delta, lse))
  scale = jnp.asarray(q.shape[-1] ** -0.5, acc)

  def body(i, carry):
    dq, dk, dv = carry
    k_i, v_i, mask = chunk(i, size, k, v, k_end, k_start)
    weights = jnp.where(mask, jnp.exp(scores_of(q, k_i) - lse), 0.0)
    d_weights = product("bktgh,bskh->bktgs", d_out, v_i)
    d_scores = (weights * (d_weights - delta) * scale).astype(q.dtype)
    dq += product("bktgs,bskh->bktgh", d_scores, k_i)
    dk_i = product("bktgs,bktgh->bskh", d_scores, q)
    dv_i = product("bktgs,bktgh->bskh", weights.astype(q.dtype), d_out)
    at = chunk_start(i, size, k.shape[1])
    return dq, _add_at(dk, dk_i, at), _add_at(dv, dv_i, at)

  start = (
    jnp.zeros(q.shape, acc),
    jnp.zeros(k.shape, acc),
    jnp.zeros(v.shape, acc),
  )
  first, last = chunk_range(size, k.shape[1], k_end, k_start)
  dq, dk, dv = lax.fori_loop(first, last, body, start)
  dq = dq.transpose(0, 2, 1, 3, 4).reshape(out.shape)
  return dq.astype(q.dtype), dk, dv


def _add_at(total: Array, part: Array, at) -> Array:
  old = lax.dynamic_slice_in_dim(total, at, part.shape[1], 1)
  return lax.dynamic_update_slice_in_dim(total, old + part, at, 1)
