"""The key/value cache: one array per layer, and no bookkeeping.

What of it counts is decided elsewhere, by the one `lengths` vector of the
decoding state: a pass overwrites what lies beyond.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int

from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.nn.sharding import HEADS


@struct.dataclass
class KVCache:
  """Keys and values of every layer.

  Attributes:
    k: L arrays [B, S, K, H], after RoPE.
    v: L arrays [B, S, K, H].
  """

  k: tuple[Float[Array, "B S K H"], ...]
  v: tuple[Float[Array, "B S K H"], ...]

  @property
  def capacity(self) -> int:
    """S, the positions a row has room for."""
    return self.k[0].shape[1]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def init_cache(
  config: ModelConfig,
  batch: int,
  capacity: int,
  dtype=jnp.float32,
  mesh: Mesh | None = None,
) -> KVCache:
  """An empty cache (zeros) for `batch` rows of `capacity` positions."""
  shape = (batch, capacity, config.num_kv_heads, config.head_dim)
  device = None if mesh is None else NamedSharding(mesh, HEADS)
  zeros = lambda: tuple(
    jnp.zeros(shape, dtype, device=device) for _ in range(config.num_layers)
  )
  return KVCache(k=zeros(), v=zeros())


def write(
  cache: Float[Array, "B S K H"],
  new: Float[Array, "B T K H"],
  slots: Int[Array, "B T"],
) -> Float[Array, "B S K H"]:
  """Puts new[b, t] at position slots[b, t]; a slot >= S is dropped.

  Dropped, never clamped: a clamped write would replace committed keys. The
  slots of a row that are not dropped must differ, since a GPU then stores
  where it would compare and swap.
  """

  def put(cache: Array, new: Array, slots: Array) -> Array:
    rows = jnp.arange(cache.shape[0], dtype=slots.dtype)[:, None]
    return cache.at[rows, slots].set(new, mode="drop", unique_indices=True)

  def put_two(cache: Array, new: Array, slots: Array) -> Array:
    new = jnp.pad(new, ((0, 0), (0, 1), (0, 0), (0, 0)))
    slots = jnp.pad(slots, ((0, 0), (0, 1)), constant_values=cache.shape[1])
    return put(cache, new, slots)

  if slots.size > 1:
    return put(cache, new, slots)
  # XLA cuts the write of a single slot into two kernels on a GPU, of two not.
  return lax.platform_dependent(cache, new, slots, cpu=put, default=put_two)
