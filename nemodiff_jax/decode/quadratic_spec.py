"""Quadratic self-speculation: draft and verification in one pass.

The pass holds C rows of 1 + C tokens: row i is draft token i and C masks
behind it. Column 0 is an ordinary causal pass over the draft; the masks of
row i draft what follows if the draft is right up to i. Whatever the number of
accepted tokens, the next draft is already there.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nemodiff_jax.decode.emit import emit
from nemodiff_jax.decode.sampling import read, trace
from nemodiff_jax.decode.state import (
  Decoder,
  DecodeState,
  Picked,
  Weights,
)
from nemodiff_jax.decode.verify import accept, last_accepted, take_accepted
from nemodiff_jax.nn.attention import CachedPass
from nemodiff_jax.nn.model import cached_pass


def begin(decoder: Decoder, state: DecodeState, first: Picked) -> DecodeState:
  """The prefill carried C masks: it gives a whole draft, its first certain."""
  del decoder
  nfe = state.nfe + state.running.astype(jnp.int32)
  state = replace(state, block=first, nfe=nfe)
  return emit(state, first.part(slice(1)), jnp.ones_like(state.count))


def step(decoder: Decoder, weights: Weights, state: DecodeState) -> DecodeState:
  """Verifies the draft and picks the next one."""
  hidden, state = quadratic_pass(decoder, weights, state)
  slot = jnp.arange(decoder.block, dtype=jnp.int32)[None]
  after = state.lengths[:, None] + slot + 1
  verified, sure = read(decoder, weights, hidden[:, :, 0], after, state)
  state = trace(decoder, state, verified, sure)
  count = accept(state.block.token, verified.token)
  known = last_accepted(verified, count)

  row = (count - 1)[:, None, None, None]
  ahead = jnp.take_along_axis(hidden, row, 1)[:, 0, 2:]
  behind = (state.lengths + count)[:, None] + slot[:, 1:]
  state = take_accepted(state, verified, count)
  drafts, _ = read(decoder, weights, ahead, behind, state)
  block = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), known, drafts)
  return replace(state, block=block)


def quadratic_pass(
  decoder: Decoder, weights: Weights, state: DecodeState
) -> tuple[Float[Array, "B C 1+C D"], DecodeState]:
  """Hidden states of every row and column; only column 0 is cached."""
  size = decoder.block
  batch = state.lengths.shape[0]
  i = jnp.arange(size, dtype=jnp.int32)[None, :, None]
  j = jnp.arange(size + 1, dtype=jnp.int32)[None, None]
  on = state.running[:, None, None]
  shape = (batch, size, size + 1)
  tokens = jnp.where(j == 0, state.block.token[..., None], decoder.mask_id)
  start = state.lengths[:, None, None]
  draft = jnp.broadcast_to(start + i, shape)

  def flat(x):
    return x.reshape(batch, -1)

  where = CachedPass(
    positions=flat(start + i + j),
    slots=flat(jnp.where(on & (j == 0), draft, state.cache.capacity)),
    k_end=flat(jnp.where(on, draft + 1, 0)),
    local=size,
    attention=decoder.attention,
  )
  hidden, cache = cached_pass(
    decoder.module, weights.params, flat(tokens), where, state.cache
  )
  nfe = state.nfe + state.running.astype(jnp.int32)
  return hidden.reshape(*shape, -1), replace(state, cache=cache, nfe=nfe)
