"""LinearSpec: a diffusion draft, verified by an ar pass of the same weights.

Rows alternate between drafting (bidirectional, with the drafter LoRA, nothing
kept) and verification (causal, without it). Greedy or sampled, the output is
the ar output.
"""

from dataclasses import replace

import jax.numpy as jnp

from nemodiff_jax.decode.commit import reveal
from nemodiff_jax.decode.emit import emit
from nemodiff_jax.decode.sampling import read, trace
from nemodiff_jax.decode.state import (
  Decoder,
  DecodeState,
  Picked,
  Weights,
  block_pass,
  fresh_block,
  select,
)
from nemodiff_jax.decode.verify import accept, last_accepted, take_accepted

DRAFT, VERIFY = 0, 1


def begin(decoder: Decoder, state: DecodeState, first: Picked) -> DecodeState:
  """The prefill counts as a pass and yields the first token [B, 1]."""
  nfe = state.nfe + state.running.astype(jnp.int32)
  state = replace(state, block=fresh_block(decoder, first), nfe=nfe)
  return emit(state, first, jnp.ones_like(state.count))


def step(decoder: Decoder, weights: Weights, state: DecodeState) -> DecodeState:
  """One pass: each row drafts its block or verifies it."""
  verify = state.phase == VERIFY
  hidden, state = block_pass(decoder, weights, state, verify, weights.lora)
  slot = jnp.arange(decoder.block, dtype=jnp.int32)[None]
  shift = verify[:, None].astype(jnp.int32)
  positions = state.lengths[:, None] + slot + shift
  picked, sure = read(decoder, weights, hidden, positions, state)
  state = trace(decoder, state, picked, sure)

  masked = state.block.token == decoder.mask_id
  shown = reveal(
    sure,
    masked,
    state.rows.draft_threshold,
    jnp.ones_like(state.count),
  )
  drafted = select(shown, picked, state.block)
  ready = ~(drafted.token == decoder.mask_id).any(1)

  count = accept(state.block.token, picked.token)
  last = last_accepted(picked, count)
  state = take_accepted(state, picked, jnp.where(verify, count, 0))
  renewed = fresh_block(decoder, last)
  return replace(
    state,
    block=select(verify[:, None], renewed, drafted),
    phase=jnp.where(~verify & ready, VERIFY, DRAFT).astype(jnp.int32),
  )
