"""LinearSpec: a diffusion draft, verified by an ar pass of the same weights.

Rows alternate between drafting (bidirectional, with the drafter LoRA, nothing
kept) and verification (causal, without it). Greedy or sampled, the output is
the ar output.
"""

from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Array, Int

from nemodiff_jax.decode.commit import reveal
from nemodiff_jax.decode.sampling import choose, confidence
from nemodiff_jax.decode.state import (
  Decoder,
  DecodeState,
  Weights,
  block_pass,
  emit,
  fresh_block,
)
from nemodiff_jax.decode.verify import accept, take_accepted

DRAFT, VERIFY = 0, 1


def begin(
  decoder: Decoder, state: DecodeState, first: Int[Array, "B 1"]
) -> DecodeState:
  """The prefill counts as a pass and yields the first token."""
  state = replace(
    state,
    block=fresh_block(decoder, first[:, 0]),
    nfe=state.nfe + state.running.astype(jnp.int32),
  )
  return emit(state, first, jnp.ones_like(state.count))


def step(decoder: Decoder, weights: Weights, state: DecodeState) -> DecodeState:
  """One pass: each row drafts its block or verifies it."""
  verify = state.phase == VERIFY
  logits, state = block_pass(decoder, weights, state, verify)
  slot = jnp.arange(decoder.block, dtype=jnp.int32)[None]
  shift = verify[:, None].astype(jnp.int32)
  positions = state.lengths[:, None] + slot + shift
  tokens = choose(decoder, logits, positions, state.rows)

  masked = state.block == decoder.mask_id
  shown = reveal(
    confidence(logits, tokens),
    masked,
    state.rows.draft_threshold,
    jnp.ones_like(state.count),
  )
  drafted = jnp.where(shown, tokens, state.block)
  ready = ~(drafted == decoder.mask_id).any(1)

  count = accept(state.block, tokens)
  last = jnp.take_along_axis(tokens, count[:, None] - 1, 1)[:, 0]
  state = take_accepted(state, tokens, jnp.where(verify, count, 0))
  return replace(
    state,
    block=jnp.where(verify[:, None], fresh_block(decoder, last), drafted),
    phase=jnp.where(~verify & ready, VERIFY, DRAFT),
  )
