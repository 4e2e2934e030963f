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
from nemodiff_jax.decode.mode import Mode
from nemodiff_jax.decode.passes import count_pass
from nemodiff_jax.decode.sampling import proposal, read
from nemodiff_jax.decode.state import Decoder, DecodeState, Emitted, Weights
from nemodiff_jax.decode.verify import accept, last_accepted, take_accepted
from nemodiff_jax.nn.attention import CachedPass
from nemodiff_jax.nn.model import cached_pass


def begin(
  decoder: Decoder,
  weights: Weights,
  state: DecodeState,
  hidden: Float[Array, "B C D"],
) -> tuple[DecodeState, Emitted]:
  """The prefill carried C masks: it gives a whole draft, its first certain."""
  slot = jnp.arange(decoder.block, dtype=jnp.int32)[None]
  at = state.lengths[:, None] + slot
  none = jnp.full_like(at, -1)  # Behind the first one there are drafts.
  draft, _ = read(decoder, weights, hidden, at, state, before=none)
  state = replace(state, block=draft, nfe=count_pass(state))
  return emit(state, draft, jnp.ones_like(state.count))


def step(
  decoder: Decoder, weights: Weights, state: DecodeState
) -> tuple[DecodeState, Emitted]:
  """Verifies the draft and picks the next one."""
  hidden, state = quadratic_pass(decoder, weights, state)
  slot = jnp.arange(decoder.block, dtype=jnp.int32)[None]
  after = state.lengths[:, None] + slot + 1
  verified, sure = read(
    decoder, weights, hidden[:, :, 0], after, state, before=state.block.token
  )
  count = accept(state.block.token, verified.token)
  known = last_accepted(verified, count)

  row = (count - 1)[:, None, None, None]
  ahead = jnp.take_along_axis(hidden, row, 1)[:, 0, 2:]
  behind = (state.lengths + count)[:, None] + slot[:, 1:]
  proposed = proposal(decoder, verified, sure)
  state, emitted = take_accepted(state, verified, count, proposed)
  drafts, _ = read(decoder, weights, ahead, behind, state)
  block = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), known, drafts)
  return replace(state, block=block), emitted


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
    slots=flat(jnp.where(on & (j == 0), draft, state.capacity)),
    k_end=flat(jnp.where(on, draft + 1, 0)),
    table=state.table,
    local=size,
    attention=decoder.attention,
  )
  hidden, cache = cached_pass(
    decoder.module, weights.params, flat(tokens), where, state.cache
  )
  state = replace(state, cache=cache, nfe=count_pass(state))
  return hidden.reshape(*shape, -1), state


MODE = Mode(
  "quadratic_spec",
  begin,
  step,
  phases=("quadratic",),
  queries=lambda block: block * (block + 1),
  default_block=16,
  prefill_masks=True,
  speculative=True,
)
