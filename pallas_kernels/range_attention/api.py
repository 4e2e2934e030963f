"""Range attention: checks the arguments and runs an implementation."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.range_attention import dispatch, reference, tokamax

PAGE = reference.CHUNK  # Keys of a page; the kernels' tiles are halves of it.


def range_attention(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"] | Float[Array, "P page K H"],
  v: Float[Array, "B S K H"] | Float[Array, "P page K H"],
  k_end: Int[Array, "B T"],
  *,
  k_start: Int[Array, "B T"] | None = None,
  table: Int[Array, "B M"] | None = None,
  implementation: str | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
  """Attends from query (b, t) to the keys [k_start[b, t], k_end[b, t]).

  With G = N / K query heads per key head, the op is equivalent to

      s = einsum('btkgh,bskh->btkgs', q, k) / sqrt(H)
      s = where(k_start <= arange(S) < k_end, s, -inf)
      out, lse = softmax(s) @ v, logsumexp(s)

  An empty range gives out = 0 and lse = -inf. Keys and values beyond the
  largest k_end of a row never reach its output, NaN included. Work grows with
  the largest k_end, not with S. Differentiable in q, k and v, through both
  outputs, without a table.

  With a table the keys lie in a pool of P pages of PAGE keys, S is M * PAGE,
  and key s of row b is pool[table[b, s // PAGE], s % PAGE]. Rows may share
  pages. The entry of a page that a row does not have is P: it is read as the
  last page, and what lies there never reaches the output.

  Args:
    q: queries.
    k: keys of each row, or the pool of them; K must divide N.
    v: values.
    k_end: one past the last key of each query; values above S mean S.
    k_start: first key of each query, 0 when absent.
    table: pages of each row, where k and v are pools.
    implementation: 'xla', 'mosaic' (Hopper and Blackwell), 'triton',
      'tokamax' (Hopper, with k_start and a backward of its own), or None
      to choose by device, dtype and shape.

  Returns:
    The output in the dtype of q, and the log-sum-exp of the scaled scores in
    float32 (float64 when q is float64).

  Raises:
    ValueError: a shape, dtype or implementation name that cannot be served.
    NotImplementedError: the named implementation cannot serve this call, or
      a gradient is asked for with a table.
  """
  _check(q, k, v, k_end, k_start, table)
  shape = k.shape
  if table is not None:
    table = table.astype(jnp.int32)
    shape = (len(table), table.shape[1] * PAGE, *k.shape[2:])
  name = dispatch.resolve(
    implementation, q.shape, shape, q.dtype,
    starts=k_start is not None, paged=table is not None,
  )  # fmt: skip
  if name in ("mosaic", "triton"):
    return _on_gpu(q, k, v, k_end.astype(jnp.int32), table, name)
  # Decoding gives no k_start or a table, and keeps to chunks of a page.
  training = k_start is not None and table is None
  if k_start is None:
    k_start = jnp.zeros_like(k_end)
  if name == "tokamax":
    ranges = k_end.astype(jnp.int32), k_start.astype(jnp.int32)
    return tokamax.range_attention(q, k, v, *ranges)
  return reference.range_attention(q, k, v, k_end, k_start, table, training)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _on_gpu(q, k, v, k_end, table, name):
  """A GPU kernel; its backward is the one in XLA."""
  if table is None:  # Each row is a single page.
    table = jnp.arange(len(k), dtype=jnp.int32)[:, None]
  return dispatch.forward(name)(q, k, v, k_end, table)


def _forward(q, k, v, k_end, table, name):
  out, lse = _on_gpu(q, k, v, k_end, table, name)
  return (out, lse), (q, k, v, k_end, jnp.zeros_like(k_end), table, out, lse)


def _backward(name, saved, cotangents):
  del name
  return reference.backward(saved, cotangents)[:5]


_on_gpu.defvjp(_forward, _backward)


def _check(q, k, v, k_end, k_start, table) -> None:
  if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
    raise ValueError(
      "q should be [B, T, N, H] and k, v equal [B, S, K, H], got"
      f" {q.shape=}, {k.shape=}, {v.shape=}."
    )
  if table is not None:
    _check_table(q, k, table)
  if q.shape[3] != k.shape[3] or (table is None and len(q) != len(k)):
    raise ValueError(
      f"q and k should agree in B and H, got {q.shape=}, {k.shape=}."
    )
  if k.shape[2] == 0 or q.shape[2] % k.shape[2]:
    raise ValueError(
      f"the {q.shape[2]} query heads should be a multiple of the"
      f" {k.shape[2]} key heads."
    )
  if not q.dtype == k.dtype == v.dtype or not jnp.issubdtype(
    q.dtype, jnp.floating
  ):
    raise ValueError(
      "q, k and v should share one floating dtype, got"
      f" {q.dtype}, {k.dtype}, {v.dtype}."
    )
  for name, bound in (("k_end", k_end), ("k_start", k_start)):
    if bound is None:
      continue
    if bound.shape != q.shape[:2] or not jnp.issubdtype(
      bound.dtype, jnp.integer
    ):
      raise ValueError(
        f"{name} should be integers of shape {q.shape[:2]}, got"
        f" {bound.dtype}{bound.shape}."
      )


def _check_table(q, pool, table) -> None:
  if table.ndim != 2 or not jnp.issubdtype(table.dtype, jnp.integer):
    raise ValueError(
      f"table should be integers [B, M], got {table.dtype}{table.shape}."
    )
  if table.shape[0] != q.shape[0] or table.shape[1] == 0:
    raise ValueError(
      f"table should have a row of pages for each of the {q.shape[0]} rows of"
      f" q, got {table.shape=}."
    )
  if pool.shape[0] == 0 or pool.shape[1] != PAGE:
    raise ValueError(
      f"with a table, k and v should be pools of pages of {PAGE} keys,"
      f" [P, {PAGE}, K, H], got k.shape={pool.shape}."
    )
