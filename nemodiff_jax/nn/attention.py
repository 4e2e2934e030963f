"""Grouped-query attention of one layer, over a cache or a clean sequence."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from nemodiff_jax.nn import cache as kv_cache
from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.nn.layers import Linear, Rotary, rotate
from nemodiff_jax.nn.lora import LoraLayer, lora_term
from pallas_kernels.range_attention import (
  local_attention,
  merge,
  range_attention,
)

# Takes q, k, v of one layer and that layer's memory; returns the output and
# the new memory.
Attend = Callable[[Array, Array, Array, Any], tuple[Array, Any]]


class Attention(nn.Module):
  """Projections and RoPE around whatever `attend` does with q, k and v."""

  config: ModelConfig

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    rope: Rotary,
    attend: Attend,
    memory: Any,
    lora: LoraLayer | None,
    lora_rows: Bool[Array, "B"] | Bool[Array, "B T"] | None,
  ) -> tuple[Float[Array, "B T D"], Any]:
    """Returns the output and the new memory of `attend`."""
    c = self.config
    batch, steps, _ = x.shape

    def heads(name: str, count: int) -> Array:
      y = Linear(count * c.head_dim, name=name)(x)
      return y.reshape(batch, steps, count, c.head_dim)

    q = rotate(heads("q_proj", c.num_heads), rope)
    k = rotate(heads("k_proj", c.num_kv_heads), rope)
    v = heads("v_proj", c.num_kv_heads)
    if rope.query_scale is not None:
      q = q * rope.query_scale.astype(q.dtype)
    out, memory = attend(q, k, v, memory)
    out = out.reshape(batch, steps, c.num_heads * c.head_dim)
    y = Linear(c.hidden_size, name="o_proj")(out)
    if lora is not None:
      y = y + lora_term(out, lora, lora_rows)
    return y, memory


@struct.dataclass
class CachedPass:
  """One decoding pass: where its tokens go and how far each one sees.

  Attributes:
    positions: [B, T] for RoPE and the query scale.
    slots: [B, T] cache positions to write; >= capacity: not written.
    table: [B, M] pages of each row in the cache's pools.
    k_end: [B, T] one past the last cached key a query sees; 0: none.
    local: C where the tokens are rows of [draft, C masks] whose masks also
      see each other (quadratic self-speculation); None otherwise.
    attention: implementation of range attention; None: chosen.
  """

  positions: Int[Array, "B T"]
  slots: Int[Array, "B T"]
  k_end: Int[Array, "B T"]
  table: Int[Array, "B M"]
  local: int | None = struct.field(pytree_node=False, default=None)
  attention: str | None = struct.field(pytree_node=False, default=None)

  def attend(
    self, q: Array, k: Array, v: Array, memory: tuple[Array, Array]
  ) -> tuple[Array, tuple[Array, Array]]:
    """Writes k and v into the layer's pools, then attends to its range."""
    at = kv_cache.addresses(self.slots, self.table, len(memory[0]))
    memory = (
      kv_cache.write(memory[0], k, at),
      kv_cache.write(memory[1], v, at),
    )
    out, lse = range_attention(
      q, *memory, self.k_end, table=self.table, implementation=self.attention
    )
    if self.local is not None:
      out = _with_local(out, lse, q, k, v, self.local)
    return out, memory


def _with_local(
  out: Array, lse: Array, q: Array, k: Array, v: Array, masks: int
) -> Array:
  """Lets the masks (columns 1..) of each row see each other."""

  def columns(x: Array) -> Array:  # [B, rows, 1 + masks, ...]
    return x.reshape(x.shape[0], -1, masks + 1, *x.shape[2:])

  def flat(x: Array) -> Array:
    return x[:, :, 1:].reshape(x.shape[0], -1, *x.shape[3:])

  q, k, v = (flat(columns(x)) for x in (q, k, v))
  local = local_attention(q, k, v, masks)
  wide = columns(out)
  joined, _ = merge(flat(wide), flat(columns(lse)), *local)
  joined = joined.reshape(wide[:, :, 1:].shape)
  return jnp.concatenate([wide[:, :, :1], joined], 2).reshape(out.shape)
