"""Range attention: checks the arguments and runs an implementation."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.range_attention import dispatch, reference, tokamax


def range_attention(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"],
  v: Float[Array, "B S K H"],
  k_end: Int[Array, "B T"],
  *,
  k_start: Int[Array, "B T"] | None = None,
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
  outputs.

  Args:
    q: queries.
    k: keys; K must divide N.
    v: values.
    k_end: one past the last key of each query; values above S mean S.
    k_start: first key of each query, 0 when absent.
    implementation: 'xla', 'mosaic' (Hopper and Blackwell), 'triton',
      'tokamax' (Hopper, with k_start and a backward of its own), or None
      to choose by device, dtype and shape.

  Returns:
    The output in the dtype of q, and the log-sum-exp of the scaled scores in
    float32 (float64 when q is float64).

  Raises:
    ValueError: a shape, dtype or implementation name that cannot be served.
    NotImplementedError: the named implementation cannot serve this call.
  """
  _check(q, k, v, k_end, k_start)
  name = dispatch.resolve(
    implementation, q.shape, k.shape, q.dtype, starts=k_start is not None
  )
  if name in ("mosaic", "triton"):
    return _on_gpu(q, k, v, k_end.astype(jnp.int32), name)
  # Decoding gives no k_start, and keeps to chunks as small as a page.
  training = k_start is not None
  if k_start is None:
    k_start = jnp.zeros_like(k_end)
  if name == "tokamax":
    ranges = k_end.astype(jnp.int32), k_start.astype(jnp.int32)
    return tokamax.range_attention(q, k, v, *ranges)
  return reference.range_attention(q, k, v, k_end, k_start, training)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _on_gpu(q, k, v, k_end, name):
  """A GPU kernel; its backward is the one in XLA."""
  return dispatch.forward(name)(q, k, v, k_end)


def _forward(q, k, v, k_end, name):
  out, lse = _on_gpu(q, k, v, k_end, name)
  return (out, lse), (q, k, v, k_end, jnp.zeros_like(k_end), out, lse)


def _backward(name, saved, cotangents):
  del name
  return reference.backward(saved, cotangents)[:4]


_on_gpu.defvjp(_forward, _backward)


def _check(q, k, v, k_end, k_start) -> None:
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
