"""Range attention in plain JAX: the semantics, and what runs without a GPU.

Flash attention over chunks of keys. The number of chunks is read from k_end
at run time, so a short row in a large cache costs what the row costs. Many
queries on a CPU, and those of training everywhere, are taken in turns, each of
which reads its own keys only. Off the CPU the chunks of training are wide, since
each one reads and writes the sums of all queries of a turn. A chunk that is
masked for a row changes nothing in it, to the last bit, so results do not depend
on the rest of the batch.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

CHUNK = 128  # Keys per step: small enough that a chunk stays in cache.
QUERIES = 128  # Likewise on a CPU: queries per turn, each with its own keys.
# Queries per turn and keys per step of training off the CPU: as many scores at
# a time as 8192 queries have with 128 keys.
WIDE = 2048, 512
_MASKED = -1e30


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def range_attention(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"] | Float[Array, "P page K H"],
  v: Float[Array, "B S K H"] | Float[Array, "P page K H"],
  k_end: Int[Array, "B T"],
  k_start: Int[Array, "B T"],
  table: Int[Array, "B M"] | None = None,
  training: bool = False,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
  """See `api.range_attention`; the arguments are taken as checked.

  Args:
    q: queries.
    k: keys, or a pool of pages of CHUNK keys.
    v: values.
    k_end: one past the last key of each query.
    k_start: first key of each query.
    table: pages of each row; None: k and v are no pools.
    training: whether many queries are taken as WIDE says, off the CPU.
  """
  if q.shape[1] <= QUERIES:
    return _attend(q, k, v, k_end, k_start, table)
  return lax.platform_dependent(
    *(q, k, v, k_end, k_start, table),
    cpu=functools.partial(_attend_in_turns, QUERIES, CHUNK),
    default=functools.partial(_attend_in_turns, *WIDE) if training else _attend,
  )


def _attend_in_turns(turn, size, q, k, v, k_end, k_start, table):
  one = lambda x: _attend(x[0], k, v, *x[1:], table=table, size=size)
  parts = tuple(_cut(x, turn) for x in (q, k_end, k_start))
  return _joined(lax.map(one, parts), q.shape[1])


def _attend(q, k, v, k_end, k_start, table=None, size=CHUNK):
  batch, queries, heads, dim = q.shape
  keys = k.shape[1] if table is None else table.shape[1] * k.shape[1]
  size = min(size, keys)
  acc = accumulator(q.dtype)
  q = _group(q, k.shape[2])
  row = q.shape[:-1]  # [B, K, T, G]

  def body(i, carry):
    out, peak, total = carry
    k_i, v_i, mask = _chunk(i, size, k, v, k_end, k_start, table)
    scores = jnp.where(mask, _scores(q, k_i), _MASKED)
    peak_i = jnp.maximum(peak, scores.max(-1))  # Above _MASKED: see start.
    weights = jnp.exp(scores - peak_i[..., None])  # 0 where masked.
    decay = jnp.exp(peak - peak_i)
    added = product("bktgs,bskh->bktgh", weights.astype(v.dtype), v_i)
    total = total * decay + weights.sum(-1)
    return out * decay[..., None] + added, peak_i, total

  start = (
    jnp.zeros(row + (dim,), acc),
    jnp.full(row, _MASKED / 2, acc),
    jnp.zeros(row, acc),
  )
  first, last = _chunk_range(size, keys, k_end, k_start)
  out, peak, total = lax.fori_loop(first, last, body, start)
  empty = total == 0
  total = jnp.where(empty, 1.0, total)
  out = out / total[..., None]
  lse = jnp.where(empty, -jnp.inf, peak + jnp.log(total))
  out = out.transpose(0, 2, 1, 3, 4).reshape(batch, queries, heads, dim)
  lse = lse.transpose(0, 2, 1, 3).reshape(batch, queries, heads)
  return out.astype(q.dtype), lse


def _forward(q, k, v, k_end, k_start, table, training):
  out, lse = range_attention(q, k, v, k_end, k_start, table, training)
  return (out, lse), (q, k, v, k_end, k_start, table, out, lse)


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
  (dk, dv), dq = lax.scan(one, zeros, tuple(_cut(x, turn) for x in rows))
  return _joined(dq, rows[0].shape[1]), dk, dv


def _backward(k, v, q, k_end, k_start, out, lse, d_out, d_lse, size=CHUNK):
  """Gradients of q, and of k and v in the accumulator's dtype."""
  acc = lse.dtype
  size = min(size, k.shape[1])
  delta = (d_out.astype(acc) * out.astype(acc)).sum(-1)
  delta = delta - jnp.where(jnp.isneginf(lse), 0.0, d_lse)
  lse = jnp.where(jnp.isneginf(lse), 0.0, lse)
  heads = k.shape[2]
  q, d_out = _group(q, heads), _group(d_out, heads)
  delta, lse = (_group(x[..., None], heads) for x in (delta, lse))
  scale = jnp.asarray(q.shape[-1] ** -0.5, acc)

  def body(i, carry):
    dq, dk, dv = carry
    k_i, v_i, mask = _chunk(i, size, k, v, k_end, k_start)
    weights = jnp.where(mask, jnp.exp(_scores(q, k_i) - lse), 0.0)
    d_weights = product("bktgh,bskh->bktgs", d_out, v_i)
    d_scores = (weights * (d_weights - delta) * scale).astype(q.dtype)
    dq += product("bktgs,bskh->bktgh", d_scores, k_i)
    dk_i = product("bktgs,bktgh->bskh", d_scores, q)
    dv_i = product("bktgs,bktgh->bskh", weights.astype(q.dtype), d_out)
    at = _chunk_start(i, size, k.shape[1])
    return dq, _add_at(dk, dk_i, at), _add_at(dv, dv_i, at)

  start = (
    jnp.zeros(q.shape, acc),
    jnp.zeros(k.shape, acc),
    jnp.zeros(v.shape, acc),
  )
  first, last = _chunk_range(size, k.shape[1], k_end, k_start)
  dq, dk, dv = lax.fori_loop(first, last, body, start)
  dq = dq.transpose(0, 2, 1, 3, 4).reshape(out.shape)
  return dq.astype(q.dtype), dk, dv


range_attention.defvjp(_forward, lambda _, *given: backward(*given))


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


def _cut(x: Array, turn: int) -> Array:
  """[B, T, ...] -> [turns, B, turn, ...]; fill is 0, and sees nothing."""
  turn = min(turn, x.shape[1])
  more = -x.shape[1] % turn
  x = jnp.pad(x, ((0, 0), (0, more)) + ((0, 0),) * (x.ndim - 2))
  return jnp.moveaxis(x.reshape(x.shape[0], -1, turn, *x.shape[2:]), 1, 0)


def _joined(tree, queries: int):
  """The inverse of `_cut` for every array."""

  def one(x: Array) -> Array:
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :queries]

  return jax.tree.map(one, tree)


def _group(x: Array, kv_heads: int) -> Array:
  """[B, T, N, ...] -> [B, K, T, G, ...]."""
  batch, queries, heads = x.shape[:3]
  shape = (batch, queries, kv_heads, heads // kv_heads, *x.shape[3:])
  return jnp.moveaxis(x.reshape(shape), 2, 1)


def _scores(q: Array, k: Array) -> Array:
  scores = product("bktgh,bskh->bktgs", q, k)
  return scores * jnp.asarray(q.shape[-1] ** -0.5, scores.dtype)


def _chunk_range(size: int, keys: int, k_end, k_start) -> tuple[Array, Array]:
  last = (jnp.minimum(k_end.max(), keys) + size - 1) // size
  return k_start.min() // size, last


def _chunk_start(i, size: int, keys: int):
  """The last chunk is moved back so that it does not pass the end."""
  return jnp.minimum(i * size, keys - size)


def _chunk(i, size: int, k, v, k_end, k_start, table=None):
  """Chunk i of keys and values, with what lies beyond every query as zeros."""
  if table is None:
    at = _chunk_start(i, size, k.shape[1])
    k, v = (lax.dynamic_slice_in_dim(x, at, size, 1) for x in (k, v))
  else:  # A page is a chunk.
    at = i * size
    pages = lax.dynamic_index_in_dim(table, i, 1, keepdims=False)
    k, v = (jnp.take(x, pages, 0, mode="clip") for x in (k, v))
  pos = (at + jnp.arange(size)).astype(k_end.dtype)
  fresh = pos >= i * size  # A moved chunk repeats keys of the one before.
  seen = fresh[None] & (pos[None] < k_end.max(1, keepdims=True))
  k, v = (jnp.where(seen[..., None, None], x, 0) for x in (k, v))
  low, high = k_start[..., None], k_end[..., None]
  pos = pos[None, None]
  mask = fresh[None, None] & (pos >= low) & (pos < high)  # [B, T, S]
  return k, v, mask[:, None, :, None, :]


def _add_at(total: Array, part: Array, at) -> Array:
  old = lax.dynamic_slice_in_dim(total, at, part.shape[1], 1)
  return lax.dynamic_update_slice_in_dim(total, old + part, at, 1)
