"""RMSNorm, linear maps, rotary embedding, SwiGLU."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int

from nemodiff_jax.nn.config import ModelConfig, RopeConfig
from pallas_kernels.range_attention import matmul_precision


class RMSNorm(nn.Module):
  """x / sqrt(mean(x^2) + eps) * weight, the mean in float32."""

  eps: float

  @nn.compact
  def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Normalises the last axis."""
    weight = self.param("weight", nn.initializers.ones, (x.shape[-1],), x.dtype)
    y = x.astype(jnp.float32)
    y = y * lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.eps)
    return jnp.expand_dims(weight, (0, 1)) * y.astype(x.dtype)


class Linear(nn.Module):
  """x @ kernel without a bias; the kernel is [in, out].

  Parameters that hold a `scale` are quantised: see `nn.quantize`.
  """

  features: int
  out_dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: Float[Array, "*rows I"]) -> Float[Array, "*rows O"]:
    """Maps the last axis."""
    shape = (x.shape[-1], self.features)
    kernel = self.param("kernel", nn.initializers.normal(0.02), shape, x.dtype)
    scale = self.get_variable("params", "scale")
    if scale is None:
      return linear(x, kernel, self.out_dtype)
    y = linear(x, kernel.astype(x.dtype), jnp.float32)
    y = y * jnp.expand_dims(scale, range(y.ndim - 1))
    return y.astype(self.out_dtype or x.dtype)


def linear(
  x: Float[Array, "*rows I"], kernel: Float[Array, "I O"], out_dtype=None
) -> Float[Array, "*rows O"]:
  """X @ kernel, accumulated and returned in out_dtype (that of x if None).

  On a GPU a single row of bfloat16 is computed as two. Of one row XLA makes a
  product and a sum over columns, where it rounds each product to bfloat16 and
  writes them all to memory; of two it makes a GEMM.
  """
  product = functools.partial(
    jnp.matmul,
    precision=matmul_precision(x.dtype),
    preferred_element_type=out_dtype or x.dtype,
  )

  def two_rows(x: Array, kernel: Array) -> Array:
    rows = jnp.pad(x.reshape(1, -1), ((0, 1), (0, 0)))
    return product(rows, kernel)[0].reshape(*x.shape[:-1], -1)

  if x.dtype != jnp.bfloat16 or math.prod(x.shape[:-1]) != 1:
    return product(x, kernel)
  return lax.platform_dependent(x, kernel, cpu=product, default=two_rows)


class SwiGLU(nn.Module):
  """down(silu(gate(x)) * up(x))."""

  width: int

  @nn.compact
  def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Applies the three maps."""
    gate = Linear(self.width, name="gate_proj")(x)
    up = Linear(self.width, name="up_proj")(x)
    return Linear(x.shape[-1], name="down_proj")(jax.nn.silu(gate) * up)


@struct.dataclass
class Rotary:
  """What attention needs to know of positions, computed once per pass.

  Attributes:
    cos: [B, T, 1, H/2], times the attention factor.
    sin: likewise.
    query_scale: [B, T, 1, 1], or None where the model has none.
  """

  cos: Float[Array, "B T 1 half"]
  sin: Float[Array, "B T 1 half"]
  query_scale: Float[Array, "B T 1 1"] | None


def rotary(config: ModelConfig, positions: Int[Array, "B T"]) -> Rotary:
  """Angles and query scale of each position, in float32."""
  rope = config.rope
  frequencies = jnp.asarray(inverse_frequencies(rope, config.head_dim))
  positions = positions[..., None, None]
  angles = positions.astype(jnp.float32) * frequencies[None, None, None]
  scale = None
  if rope.query_scale:
    steps = lax.div(positions, jnp.full_like(positions, rope.original_max))
    steps = steps.astype(jnp.float32)
    scale = 1.0 + rope.query_scale * jnp.log1p(steps)
  factor = rope.attention_factor
  return Rotary(jnp.cos(angles) * factor, jnp.sin(angles) * factor, scale)


def rotate(x: Float[Array, "B T N H"], rope: Rotary) -> Float[Array, "B T N H"]:
  """Rotates the two halves of each head ("rotate half" layout)."""
  a, b = jnp.split(x, 2, axis=-1)
  cos, sin = rope.cos.astype(x.dtype), rope.sin.astype(x.dtype)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def inverse_frequencies(
  rope: RopeConfig, head_dim: int
) -> Float[np.ndarray, "half"]:
  """RoPE's frequencies, interpolated by YaRN (arXiv 2309.00071) if asked.

  A frequency that turns more than beta_fast times over original_max positions
  is kept, one that turns less than beta_slow times is divided by factor, and
  those between are blended linearly in their index.
  """
  half = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  plain = np.float32(1.0) / np.power(np.float32(rope.theta), half)
  if rope.factor is None:
    return plain

  def border(turns: float) -> float:
    span = rope.original_max / (turns * 2 * math.pi)
    return head_dim * math.log(span) / (2 * math.log(rope.theta))

  low, high = border(rope.beta_fast), border(rope.beta_slow)
  if rope.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, head_dim - 1)
  index = np.arange(head_dim // 2, dtype=np.float32)
  ramp = np.clip((index - low) / (high - low or 0.001), 0, 1)
  blend = plain * (1 - ramp) + plain / np.float32(rope.factor) * ramp
  return blend.astype(np.float32)
