"""The key/value cache: a pool of pages per layer, and no bookkeeping.

A page holds PAGE positions of one row; which, a table says: position s of row
b is pool[table[b, s // PAGE], s % PAGE]. What of it counts is decided
elsewhere, by the one `lengths` vector of the decoding state: a pass overwrites
what lies beyond.
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
from pallas_kernels.range_attention import PAGE


@struct.dataclass
class KVCache:
  """Keys and values of every layer.

  Attributes:
    k: L pools [P, PAGE, K, H], after RoPE.
    v: L pools [P, PAGE, K, H].
  """

  k: tuple[Float[Array, "P page K H"], ...]
  v: tuple[Float[Array, "P page K H"], ...]

  def __repr__(self) -> str:
    """Its size; its contents fill screens."""
    k = self.k[0]
    return f"KVCache({len(self.k)} layers of {k.dtype}{list(k.shape)})"


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def init_cache(
  config: ModelConfig,
  pages: int,
  dtype=jnp.float32,
  mesh: Mesh | None = None,
) -> KVCache:
  """An empty cache (zeros) of so many pages."""
  shape = (pages, PAGE, config.num_kv_heads, config.head_dim)
  device = None if mesh is None else NamedSharding(mesh, HEADS)
  zeros = lambda: tuple(
    jnp.zeros(shape, dtype, device=device) for _ in range(config.num_layers)
  )
  return KVCache(k=zeros(), v=zeros())


def pages_for(positions: int) -> int:
  """Pages that hold so many positions of a row."""
  return -(-positions // PAGE)


def own_pages(batch: int, capacity: int) -> Int[Array, "B M"]:
  """The table of rows that lie behind each other, each with its own pages."""
  pages = pages_for(capacity)
  return jnp.arange(batch * pages, dtype=jnp.int32).reshape(batch, pages)


def addresses(
  slots: Int[Array, "B T"], table: Int[Array, "B M"], pages: int
) -> Int[Array, "B T"]:
  """Where in the pool's positions, one page after the other, a row's slots lie.

  A slot behind the table, or whose entry is `pages`, lies behind the pool.
  """
  page = jnp.take_along_axis(
    table, slots // PAGE, 1, mode="fill", fill_value=pages
  )
  return jnp.minimum(page, pages) * PAGE + slots % PAGE


def write(
  pool: Float[Array, "P page K H"],
  new: Float[Array, "B T K H"],
  at: Int[Array, "B T"],
) -> Float[Array, "P page K H"]:
  """Puts new[b, t] at an address of `addresses`; one behind the pool drops it.

  Dropped, never clamped: a clamped write would replace committed keys. The
  addresses that are not dropped must differ, since a GPU then stores where it
  would compare and swap.
  """
  flat = pool.reshape(-1, *pool.shape[2:])

  def put(flat: Array, new: Array, at: Array) -> Array:
    return flat.at[at].set(new, mode="drop", unique_indices=True)

  def put_two(flat: Array, new: Array, at: Array) -> Array:
    new = jnp.pad(new, ((0, 0), (0, 1), (0, 0), (0, 0)))
    at = jnp.pad(at, ((0, 0), (0, 1)), constant_values=len(flat))
    return put(flat, new, at)

  if at.size > 1:
    return put(flat, new, at).reshape(pool.shape)
  # XLA cuts the write of a single slot into two kernels on a GPU, of two not.
  out = lax.platform_dependent(flat, new, at, cpu=put, default=put_two)
  return out.reshape(pool.shape)
