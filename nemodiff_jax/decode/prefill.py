"""The causal pass over the prompts, in chunks, for rows of any length.

Rows are aligned at their ends: in the last chunk every row's last prompt
token (and, for quadratic_spec, its C masks) stand in the same columns. What
lies before a row's first token is padding that sees and writes nothing.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from nemodiff_jax.decode.adjust import Adjust
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


@struct.dataclass
class Queries:
  """Tokens of prompts that one pass reads, as `aligned` places them.

  Attributes:
    table: [B, M] the pages of each row.
    tokens: [B, T].
    positions: [B, T]; -1 is padding.
    lengths: [B] of the prompts, as far as they are read behind the pass.
  """

  table: Int[Array, "B M"]
  tokens: Int[Array, "B T"]
  positions: Int[Array, "B T"]
  lengths: Int[Array, "B"]


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
  lengths: Any = np.array([len(p) for p in prompts], np.int32)
  module = decoder.module
  table = own_pages(len(prompts), capacity)
  cache = init_cache(module.config, table.size, module.dtype, module.mesh)
  cut: Any = lambda x, at: x[:, at : at + width]
  parts = [
    Queries(table, cut(tokens, at), cut(positions, at), lengths)
    for at in range(0, chunks * width, width)
  ]
  for part in parts[:-1]:
    cache = _extend(decoder, weights, cache, part)
  return _begin(decoder, weights, cache, parts[-1], rows)


def aligned(
  ids: Sequence[int], start: int, size: int, masks: int, mask_id: int
) -> tuple[Any, Any]:
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
  decoder: Decoder, weights: Weights, cache: KVCache, queries: Queries
) -> tuple[Float[Array, "B T D"], KVCache]:
  """Hidden states of queries: prompts are causal.

  Masks behind a prompt (positions from lengths[b] on) see it and all of each
  other; padding sees and writes nothing.
  """
  masks = decoder.mode.masks(decoder.block)
  positions, size = queries.positions, queries.lengths[:, None]
  seen = jnp.where(positions < size, positions + 1, size + masks)
  inside = positions >= 0
  where = CachedPass(
    positions=jnp.maximum(positions, 0),
    slots=jnp.where(inside, positions, queries.table.shape[1] * PAGE),
    k_end=jnp.where(inside, seen, 0),
    table=queries.table,
    attention=decoder.attention,
  )
  return cached_pass(
    decoder.module, weights.params, queries.tokens, where, cache
  )


def begin_rows(
  decoder: Decoder,
  weights: Weights,
  cache: KVCache,
  queries: Queries,
  rows: Rows,
  adjust: Adjust | None = None,
) -> tuple[DecodeState, Emitted]:
  """Reads the last queries of prompts, and starts the mode.

  `adjust` is how the rows change their logits; None: not at all.
  """
  hidden, cache = prompt_pass(decoder, weights, cache, queries)
  state = new_state(decoder, cache, queries.table, rows, queries.lengths)
  first = hidden[:, -1:]
  if decoder.mode.prefill_masks:  # [last prompt token, C masks].
    tail = hidden[:, -decoder.block - 1 :]
    first = jnp.concatenate([tail[:, :1], tail[:, 2:]], 1)
  return decoder.mode.begin(
    decoder, weights, replace(state, adjust=adjust), first
  )


_jit = functools.partial(
  jax.jit, static_argnames="decoder", donate_argnames="cache"
)


@_jit
def _extend(
  decoder: Decoder, weights: Weights, cache: KVCache, queries: Queries
) -> KVCache:
  return prompt_pass(decoder, weights, cache, queries)[1]


_begin = _jit(begin_rows)
