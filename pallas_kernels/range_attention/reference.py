"""Range attention in plain JAX: the semantics, and what runs without a GPU.

Flash attention over chunks of keys. The number of chunks is read from k_end
at run time, so a short row in a large cache costs what the row costs. Many
queries on a CPU, and those of training everywhere, are taken in turns, each of
which reads its own keys only. Off the CPU the chunks of training are wide, since
each one reads and writes the sums of all queries of a turn.

Peaks of scores are powers of two, so sums are scaled without rounding. A chunk
that is masked for a row changes nothing in it, and chunks that are read at once
give what they give one by one, both to the last bit: results do not depend on
the rest of the batch.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.range_attention.backward import backward
from pallas_kernels.range_attention.chunks import (
  CHUNK,
  QUERIES,
  WIDE,
  accumulator,
  chunk,
  chunk_range,
  chunks_to,
  cut,
  group,
  joined,
  product,
  scores_of,
)

_AT_ONCE = 4  # Chunks of the longest rows that are read at a time, on a CPU.
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
    chunks = 0 if table is None else table.shape[1]
    if chunks < 2 or len(q) < 2 * _AT_ONCE or len(q) % _AT_ONCE:
      return _attend(q, k, v, k_end, k_start, table)
    return lax.platform_dependent(
      *(q, k, v, k_end, k_start, table),
      cpu=_attend_in_stages,
      default=_attend,
    )
  return lax.platform_dependent(
    *(q, k, v, k_end, k_start, table),
    cpu=functools.partial(_attend_in_turns, QUERIES, CHUNK),
    default=functools.partial(_attend_in_turns, *WIDE) if training else _attend,
  )


def _attend_in_turns(turn, size, q, k, v, k_end, k_start, table):
  one = lambda x: _attend(x[0], k, v, *x[1:], table=table, size=size)
  parts = tuple(cut(x, turn) for x in (q, k_end, k_start))
  return joined(lax.map(one, parts), q.shape[1])


def _attend(q, k, v, k_end, k_start, table=None, size=CHUNK):
  keys = k.shape[1] if table is None else table.shape[1] * k.shape[1]
  size = min(size, keys)
  rows = q, k_end, k_start, table
  first, last = chunk_range(size, keys, k_end, k_start)
  sums = _add_chunks(k, v, rows, first, last, _no_sums(q, k), size)
  return _output(sums, q)


def _attend_in_stages(q, k, v, k_end, k_start, table):
  """As `_attend`, but most rows do not read as many keys as the longest.

  All rows run together until those of the shorter three quarters have ended;
  then the longest quarter goes on, with as many chunks at a time.
  """
  size, few = k.shape[1], len(q) // _AT_ONCE
  keys = table.shape[1] * size
  k_end = jnp.minimum(k_end, keys)
  ends = k_end.max(1)
  order = jnp.argsort(-ends)
  rows = jax.tree.map(lambda x: x[order], (q, k_end, k_start, table))
  last = chunks_to(ends[order], size, keys)
  head = functools.partial(jax.tree.map, lambda x: x[:few])
  first = k_start.min() // size
  sums = _add_chunks(k, v, rows, first, last[few], _no_sums(q, k), size)
  longest = _add_chunks(
    k, v, head(rows), last[few], last[0], head(sums), size, _AT_ONCE
  )
  back = jnp.argsort(order)
  join = lambda a, b: jnp.concatenate([a, b[few:]])[back]
  return _output(jax.tree.map(join, longest, sums), q)


def _no_sums(q, k):
  """(Output, peak of the scores, sum of the weights) before any key."""
  acc, (batch, queries, heads, dim) = accumulator(q.dtype), q.shape
  row = batch, k.shape[2], queries, heads // k.shape[2]
  return (
    jnp.zeros((*row, dim), acc),
    jnp.full(row, _MASKED / 2, acc),
    jnp.zeros(row, acc),
  )


def _add_chunks(k, v, rows, first, last, sums, size, at_once=1):
  """Adds the chunks first to last of the keys to the sums of some rows.

  Chunks that are read at once are summed one after the other, as if each had
  been read alone.
  """
  q, k_end, k_start, table = rows
  q, k_end, k_start = (jnp.repeat(x, at_once, 0) for x in (q, k_end, k_start))
  if table is not None:
    # Pages beyond every k_end, for chunks that are read at once. Of one page in
    # all, XLA would copy the keys ahead of the loop, which takes longer.
    table = jnp.pad(table, ((0, 0), (0, at_once)))
  ahead = jnp.tile(jnp.arange(at_once, dtype=k_end.dtype), len(q) // at_once)
  ahead = (ahead * size)[:, None]  # Of the first chunk.
  k_end, k_start = k_end - ahead, k_start - ahead
  q = group(q, k.shape[2])
  split = lambda x: jnp.moveaxis(x.reshape(-1, at_once, *x.shape[1:]), 1, 0)
  join = lambda parts: jnp.stack(parts, 1).reshape(q.shape[:-1])

  def body(i, carry):
    out, peak, total = carry
    i = first + i * at_once
    k_i, v_i, mask = chunk(i, size, k, v, k_end, k_start, table, at_once)
    scores = jnp.where(mask, scores_of(q, k_i), _MASKED)
    peaks = [peak]
    for most in split(jnp.ceil(_largest(scores) / math.log(2))):
      peaks.append(jnp.maximum(peaks[-1], most))  # Above _MASKED: _no_sums.
    weights = jnp.exp(scores - _log(join(peaks[1:]))[..., None])  # Masked: 0.
    added = product("bktgs,bskh->bktgh", weights.astype(v.dtype), v_i)
    steps = peaks[:-1], peaks[1:], split(added), split(weights.sum(-1))
    for before, peak, more, weight in zip(*steps, strict=True):
      decay = _power_of_two(before - peak)
      out = out * decay[..., None] + more
      total = total * decay + weight
    return out, peaks[-1], total

  return lax.fori_loop(0, -(-(last - first) // at_once), body, sums)


def _largest(scores: Array) -> Array:
  """The largest of each row, by halves: a CPU does those many at a time.

  XLA's own reduction to the largest takes them one by one.
  """
  while scores.shape[-1] > 8 and scores.shape[-1] % 2 == 0:
    scores = jnp.maximum(*jnp.split(scores, 2, -1))
  return scores.max(-1)


def _log(exponent: Array) -> Array:
  """The natural logarithm of 2 ** exponent."""
  high = 0.693359375  # Of ten bits: its product is exact.
  return exponent * high + exponent * (math.log(2) - high)


def _power_of_two(exponent: Array) -> Array:
  """2 ** exponent for whole numbers up to 0: exact, and 0 where it is tiny."""
  least = -jnp.finfo(exponent.dtype).maxexp
  whole = jnp.maximum(exponent, least).astype(jnp.int32)
  return jnp.ldexp(jnp.ones_like(exponent), whole)


def _output(sums, q):
  out, peak, total = sums
  empty = total == 0
  total = jnp.where(empty, 1.0, total)
  out = out / total[..., None]
  lse = jnp.where(empty, -jnp.inf, _log(peak) + jnp.log(total))
  out = out.transpose(0, 2, 1, 3, 4).reshape(q.shape)
  lse = lse.transpose(0, 2, 1, 3).reshape(q.shape[:3])
  return out.astype(q.dtype), lse


def _forward(q, k, v, k_end, k_start, table, training):
  out, lse = range_attention(q, k, v, k_end, k_start, table, training)
  return (out, lse), (q, k, v, k_end, k_start, table, out, lse)


range_attention.defvjp(_forward, lambda _, *given: backward(*given))
