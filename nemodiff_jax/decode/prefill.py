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
from jaxtyping import Array, Float, Int

from nemodiff_jax.decode.state import (
  Decoder,
  DecodeState,
  Emitted,
  Rows,
  Weights,
  new_state,
)
from nemodiff_jax.nn.attention import CachedPass
from nemodiff_jax.nn.cache import KVCache, init_cache, own_pages
from nemodiff_jax.nn.model import cached_pass
from pallas_kernels.range_attention import PAGE

MAX_QUERIES = 512
_MIN_QUERIES = 16


def prefill(
  decoder: Decoder,
  weights: Weights,
  prompts: Sequence[Sequence[int]],
  rows: Rows,
  capacity: int,
) -> tuple[DecodeState, Emitted]:
  """Reads the prompts and starts the mode.

  Args:
    decoder: static part.
    weights: parameters.
    prompts: token ids of each row; an empty row is padding.
    rows: settings of each row.
    capacity: cache positions per row.

  Returns:
    The state before the first pass of the mode, and what the prefill emits.
  """
  masks = decoder.mode.masks(decoder.block)
  longest = max(map(len, prompts))
  width = chunk_width(longest, masks)
  chunks = -(-(longest + masks) // width)
  read = [
    aligned(p, 0, chunks * width, masks, decoder.mask_id) for p in prompts
  ]
  tokens, positions = (np.stack(x) for x in zip(*read, strict=True))
  lengths = np.array([len(p) for p in prompts], np.int32)
  module = decoder.module
  table = own_pages(len(prompts), capacity)
  cache = init_cache(module.config, table.size, module.dtype, module.mesh)
  for start in range(0, (chunks - 1) * width, width):
    part = slice(start, start + width)
    cache = _extend(
      decoder, weights, cache, table, tokens[:, part], positions[:, part],
      lengths,
    )  # fmt: skip
  return _begin(
    decoder,
    weights,
    cache,
    table,
    tokens[:, -width:],
    positions[:, -width:],
    lengths,
    rows,
  )


def aligned(
  ids: Sequence[int], start: int, size: int, masks: int, mask_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """The queries of a pass that ends with `ids`, and masks behind them.

  Args:
    ids: tokens at positions start, start + 1, ...
    start: position of the first.
    size: queries; at least len(ids) + masks.
    masks: behind the tokens; none where there are none.
    mask_id: their id.

  Returns:
    (tokens, positions), int32 [size]; the position of padding is -1.
  """
  tokens = np.full(size, max(mask_id, 0), np.int32)
  positions = np.full(size, -1, np.int32)
  if count := len(ids):
    first = size - count - masks
    tokens[first : first + count] = ids
    positions[first:] = np.arange(start, start + count + masks)
  return tokens, positions


def chunk_width(longest: int, masks: int) -> int:
  """Queries per chunk: a power of two, at most 512, that holds the masks."""
  width = bucket(min(longest + masks, MAX_QUERIES), _MIN_QUERIES)
  return max(width, bucket(masks + 1, _MIN_QUERIES))


def bucket(size: int, least: int) -> int:
  """The smallest power of two that holds `size`, at least `least`."""
  return max(least, 1 << (size - 1).bit_length())


def prompt_pass(
  decoder: Decoder,
  weights: Weights,
  cache: KVCache,
  table: Int[Array, "B M"],
  tokens: Int[Array, "B T"],
  positions: Int[Array, "B T"],
  lengths: Int[Array, "B"],
) -> tuple[Float[Array, "B T D"], KVCache]:
  """Hidden states of queries from `aligned`: prompts are causal.

  Masks behind a prompt (positions from lengths[b] on) see it and all of each
  other; padding sees and writes nothing.
  """
  masks = decoder.mode.masks(decoder.block)
  size = lengths[:, None]
  seen = jnp.where(positions < size, positions + 1, size + masks)
  inside = positions >= 0
  where = CachedPass(
    positions=jnp.maximum(positions, 0),
    slots=jnp.where(inside, positions, table.shape[1] * PAGE),
    k_end=jnp.where(inside, seen, 0),
    table=table,
    attention=decoder.attention,
  )
  return cached_pass(decoder.module, weights.params, tokens, where, cache)


def first_hidden(
  decoder: Decoder, hidden: Float[Array, "B T D"]
) -> Float[Array, "B n D"]:
  """What a mode begins with, of the last queries of a prompt."""
  if decoder.mode.prefill_masks:  # [last prompt token, C masks].
    tail = hidden[:, -decoder.block - 1 :]
    return jnp.concatenate([tail[:, :1], tail[:, 2:]], 1)
  return hidden[:, -1:]


_jit = functools.partial(
  jax.jit, static_argnames="decoder", donate_argnames="cache"
)


@_jit
def _extend(
  decoder: Decoder,
  weights: Weights,
  cache: KVCache,
  table: Int[Array, "B M"],
  tokens: Int[Array, "B T"],
  positions: Int[Array, "B T"],
  lengths: Int[Array, "B"],
) -> KVCache:
  return prompt_pass(
    decoder, weights, cache, table, tokens, positions, lengths
  )[1]


@_jit
def _begin(
  decoder: Decoder,
  weights: Weights,
  cache: KVCache,
  table: Int[Array, "B M"],
  tokens: Int[Array, "B T"],
  positions: Int[Array, "B T"],
  lengths: Int[Array, "B"],
  rows: Rows,
) -> tuple[DecodeState, Emitted]:
  hidden, cache = prompt_pass(
    decoder, weights, cache, table, tokens, positions, lengths
  )
  state = new_state(decoder, cache, table, rows, lengths)
  first = first_hidden(decoder, hidden)
  return decoder.mode.begin(decoder, weights, state, first)
