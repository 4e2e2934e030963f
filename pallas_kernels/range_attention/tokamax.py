"""Range attention with the Hopper kernels of tokamax, forward and backward.

What training runs on a GPU. The kernels are tokamax's own ones for one row of a
batch (its public op differentiates neither the log-sum-exp nor through it), so
this module depends on the release named in pyproject.toml. The package comes
with the extra 'cuda' and is imported when a program is traced. The forward
kernel skips tiles of keys that no query of a tile sees; the backward kernels
mask them.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.range_attention.chunks import accumulator

TILE = 128  # Queries and keys per step of a kernel: divides T and S.
_DIMS = (64, 128)
_LEAST = 1e-20  # Stands for a gradient of exactly 0: see `_with_delta`.


def unsupported(
  q_shape: tuple[int, ...], k_shape: tuple[int, ...], dtype
) -> str | None:
  """Why the kernels cannot serve a call; None: they can."""
  if importlib.util.find_spec("tokamax") is None:
    return "it needs the package tokamax (the extra 'cuda')"
  if dtype != jnp.bfloat16:
    return f"q, k and v should be bfloat16, got {jnp.dtype(dtype).name}"
  if q_shape[3] not in _DIMS:
    return f"the head dimension should be one of {_DIMS}, got {q_shape[3]}"
  if q_shape[1] % TILE or k_shape[1] % TILE:
    return (
      f"the queries and keys should be multiples of {TILE}, got"
      f" {q_shape[1]} and {k_shape[1]}"
    )
  return None


@jax.custom_vjp
def range_attention(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"],
  v: Float[Array, "B S K H"],
  k_end: Int[Array, "B T"],
  k_start: Int[Array, "B T"],
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
  """See `api.range_attention`; the arguments are taken as checked."""
  return _forward(q, k, v, k_end, k_start)[0]


def _forward(q, k, v, k_end, k_start):
  k, v = _seen(k, k_end), _seen(v, k_end)
  ends = jnp.clip(k_end, 0, k.shape[1])

  def row(q, k, v, start, end):
    out, (peak, total) = kernels()[0](
      q,
      k,
      v,
      k_start=start[None],
      k_end=end[None],
      logits_scale=q.shape[-1] ** -0.5,
      out_dtype=q.dtype,
    )
    lse = jnp.where(total > 0, peak + jnp.log(total), -jnp.inf)
    return out, lse.T

  with jax.numpy_dtype_promotion("standard"):
    with jax.numpy_rank_promotion("allow"):
      out, lse = jax.vmap(row)(q, k, v, jnp.maximum(k_start, 0), ends)
  lse = lse.astype(accumulator(q.dtype))
  return (out, lse), (q, k, v, ends, k_start, out, lse)


def _backward(saved, cotangents):
  q, k, v, k_end, k_start, out, lse = saved
  d_out, d_lse = cotangents
  acc = lse.dtype
  empty = jnp.isneginf(lse)
  delta = (d_out.astype(acc) * out.astype(acc)).sum(-1)
  delta = delta - jnp.where(empty, 0.0, d_lse)
  carrier, d_out = _with_delta(d_out, delta)
  peak = jnp.where(empty, 0.0, lse)

  def row(q, k, v, peak, carrier, d_out, start, end):
    # Softmax weights are exp(scores - peak) / total: those of the whole.
    return kernels()[1](
      q,
      k,
      v,
      (peak.T, jnp.ones_like(peak.T)),
      carrier,
      d_out,
      k_start=start[None],
      k_end=end[None],
      logits_scale=q.shape[-1] ** -0.5,
    )[:3]

  with jax.numpy_dtype_promotion("standard"):
    with jax.numpy_rank_promotion("allow"):
      args = q, k, v, peak, carrier, d_out, jnp.maximum(k_start, 0), k_end
      dq, dk, dv = jax.vmap(row)(*args)
  return dq, dk, dv, None, None


range_attention.defvjp(_forward, _backward)


def _with_delta(
  d_out: Float[Array, "B T N H"], delta: Float[Array, "B T N"]
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N H"]]:
  """(out, d_out) of which the kernels compute this delta.

  They take delta = sum(out * d_out) and use the output for nothing else; but
  where the log-sum-exp has a gradient, delta is less by that. So they are
  given an output with one entry that is not 0, where d_out is largest.
  """
  acc = delta.dtype
  axis = (1,) * (d_out.ndim - 1) + d_out.shape[-1:]
  index = jnp.arange(d_out.shape[-1], dtype=jnp.int32).reshape(axis)
  largest = jnp.abs(d_out).argmax(-1).astype(jnp.int32)
  here = index == largest[..., None]
  least = jnp.asarray(_LEAST, d_out.dtype)
  d_out = jnp.where(here & (jnp.abs(d_out) < least), least, d_out)
  value = jnp.where(here, d_out.astype(acc), 0).sum(-1)
  return jnp.where(here, (delta / value)[..., None], 0), d_out


def _seen(x: Float[Array, "B S K H"], k_end: Int[Array, "B T"]) -> Array:
  """Keys or values with zeros beyond the largest k_end of the row."""
  index = jnp.arange(x.shape[1], dtype=k_end.dtype)
  seen = index[None] < k_end.max(1, keepdims=True)
  return jnp.where(seen[..., None, None], x, 0)


@functools.cache
def kernels() -> tuple[Callable, Callable]:
  """Tokamax's kernels for one row: forward, and its gradient."""
  package = "tokamax._src.ops.attention.pallas_mosaic_gpu"
  forward = importlib.import_module(f"{package}_kernel_sm90")
  backward = importlib.import_module(f"{package}_vjp_kernel_sm90")
  fixed = dict(bias=None, mask=None, is_causal=False, logits_soft_cap=None)
  return (
    functools.partial(
      forward.flash_attention_kernel,
      **fixed,
      normalize_output=True,
      return_residuals=True,
      use_stable_softmax=True,
      rescale_threshold=1.0,
      config=forward.Config(
        block_q=64, block_kv=TILE, num_stages=2, persistent=False
      ),
    ),
    functools.partial(
      backward.flash_attention_vjp_kernel,
      **fixed,
      ds_dtype=None,
      config=backward.Config(
        block_q_dkv=64, block_kv_dkv=64, block_q_dq=64, block_kv_dq=64,
      ),
    ),
  )  # fmt: skip
