"""The causal pass over the prompts, in chunks, for rows of any length.

Rows are aligned at their ends: in the last chunk every row's last prompt
token (and, for quadratic_spec, its C masks) stand in the same columns. What
lies before a row's first token is padding that sees and writes nothing.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from nemodiff_jax.decode import ar, diffusion, linear_spec, quadratic_spec
from nemodiff_jax.decode.sampling import read
from nemodiff_jax.decode.state import (
  Decoder,
  DecodeState,
  Rows,
  Weights,
  new_state,
)
from nemodiff_jax.nn.attention import CachedPass
from nemodiff_jax.nn.cache import KVCache, init_cache
from nemodiff_jax.nn.model import cached_pass

MODE = {
  "ar": ar,
  "diffusion": diffusion,
  "linear_spec": linear_spec,
  "quadratic_spec": quadratic_spec,
}
MAX_QUERIES = 512
_MIN_QUERIES = 16


def prefill(
  decoder: Decoder,
  weights: Weights,
  prompts: Sequence[Sequence[int]],
  rows: Rows,
  capacity: int,
  cache: KVCache | None = None,
  cached: int = 0,
) -> DecodeState:
  """Reads the prompts and starts the mode.

  Args:
    decoder: static part.
    weights: parameters.
    prompts: token ids of each row; an empty row is padding.
    rows: settings of each row.
    capacity: cache positions per row.
    cache: one to go on with (donated), of that capacity; None: a new one.
    cached: leading tokens of every prompt that the cache holds already; fewer
      than any prompt has.

  Returns:
    The state before the first pass of the mode.
  """
  masks = decoder.block if decoder.mode == "quadratic_spec" else 0
  lengths = np.array([len(p) for p in prompts], np.int32)
  longest = int(lengths.max()) - cached
  width = chunk_width(longest, masks)
  chunks = -(-(longest + masks) // width)
  table = np.full((len(prompts), chunks * width), max(decoder.mask_id, 0))
  positions = np.arange(chunks * width) - chunks * width
  positions = (positions[None] + lengths[:, None] + masks).astype(np.int32)
  positions[positions < cached] = -1  # Padding, or there already.
  for row, prompt in enumerate(prompts):
    inside = (positions[row] >= 0) & (positions[row] < len(prompt))
    table[row, inside] = np.asarray(prompt)[positions[row, inside]]
  table = table.astype(np.int32)

  if cache is None:
    module = decoder.module
    cache = init_cache(
      module.config, len(prompts), capacity, module.dtype, module.mesh
    )
  ends = jnp.asarray(lengths)
  for start in range(0, (chunks - 1) * width, width):
    part = slice(start, start + width)
    cache = _extend(
      decoder, weights, cache, table[:, part], positions[:, part], ends
    )
  return _begin(
    decoder,
    weights,
    cache,
    table[:, -width:],
    positions[:, -width:],
    ends,
    rows,
  )


def chunk_width(longest: int, masks: int) -> int:
  """Queries per chunk: a power of two, at most 512, that holds the masks."""
  width = bucket(min(longest + masks, MAX_QUERIES), _MIN_QUERIES)
  return max(width, bucket(masks + 1, _MIN_QUERIES))


def bucket(size: int, least: int) -> int:
  """The smallest power of two that holds `size`, at least `least`."""
  return max(least, 1 << (size - 1).bit_length())


def _pass(decoder, weights, cache, tokens, positions, lengths):
  masks = decoder.block if decoder.mode == "quadratic_spec" else 0
  size = lengths[:, None]
  seen = jnp.where(positions < size, positions + 1, size + masks)
  inside = (positions >= 0) & (size > 0)
  where = CachedPass(
    positions=jnp.maximum(positions, 0),
    slots=jnp.where(inside, positions, cache.capacity),
    k_end=jnp.where(inside, seen, 0),
    attention=decoder.attention,
  )
  return cached_pass(decoder.module, weights.params, tokens, where, cache)


@functools.partial(jax.jit, static_argnames="decoder", donate_argnames="cache")
def _extend(
  decoder: Decoder,
  weights: Weights,
  cache: KVCache,
  tokens: Int[Array, "B T"],
  positions: Int[Array, "B T"],
  lengths: Int[Array, "B"],
) -> KVCache:
  return _pass(decoder, weights, cache, tokens, positions, lengths)[1]


@functools.partial(jax.jit, static_argnames="decoder", donate_argnames="cache")
def _begin(
  decoder: Decoder,
  weights: Weights,
  cache: KVCache,
  tokens: Int[Array, "B T"],
  positions: Int[Array, "B T"],
  lengths: Int[Array, "B"],
  rows: Rows,
) -> DecodeState:
  hidden, cache = _pass(decoder, weights, cache, tokens, positions, lengths)
  if decoder.mode == "quadratic_spec":  # [last prompt token, C masks].
    tail = hidden[:, -decoder.block - 1 :]
    hidden = jnp.concatenate([tail[:, :1], tail[:, 2:]], 1)
  else:
    hidden = hidden[:, -1:]
  slot = jnp.arange(hidden.shape[1], dtype=jnp.int32)[None]
  at = lengths[:, None] + slot
  state = new_state(decoder, cache, rows, lengths)
  think = decoder.mode != "diffusion"  # It writes a budget's end itself.
  first, _ = read(decoder, weights, hidden, at, state, think=think)
  return MODE[decoder.mode].begin(decoder, state, first)
