"""FastDiffuser: blocks of masks refined in a few bidirectional passes.

A row alternates between two phases. Denoising passes (nothing is kept in the
cache) reveal slots of the block until none that counts is masked; one causal
pass then commits the block, and its last logits seed the next. Rows do not
wait for each other: one forward pass serves rows in either phase.
"""

from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Array, Int

from nemodiff_jax.decode.commit import reveal, schedule
from nemodiff_jax.decode.sampling import choose, confidence
from nemodiff_jax.decode.state import (
  Decoder,
  DecodeState,
  Weights,
  block_pass,
  emit,
  fresh_block,
  is_stop,
)

DENOISE, COMMIT = 0, 1


def begin(
  decoder: Decoder, state: DecodeState, first: Int[Array, "B 1"]
) -> DecodeState:
  """The prefill (not counted) seeds slot 0 of the first block."""
  state = replace(state, block=fresh_block(decoder, first[:, 0]))
  state = replace(state, masked=_open(decoder, state).sum(1, dtype=jnp.int32))
  return _settle(decoder, state)


def step(decoder: Decoder, weights: Weights, state: DecodeState) -> DecodeState:
  """One pass: each row denoises its block or commits it."""
  commit = state.phase == COMMIT
  logits, state = block_pass(decoder, weights, state, commit)
  slot = jnp.arange(decoder.block, dtype=jnp.int32)[None]
  shift = commit[:, None].astype(jnp.int32)
  positions = state.lengths[:, None] + slot + shift
  tokens = choose(decoder, logits, positions, state.rows)

  rows = state.rows
  quota = schedule(state.masked, rows.steps, state.turn, rows.threshold)
  shown = reveal(
    confidence(logits, tokens), _open(decoder, state), rows.threshold, quota
  )
  denoised = jnp.where(shown, tokens, state.block)
  seeded = fresh_block(decoder, tokens[:, -1])
  move = commit & state.running
  state = replace(
    state,
    block=jnp.where(commit[:, None], seeded, denoised),
    lengths=state.lengths + jnp.where(move, decoder.block, 0),
    turn=jnp.where(commit, 0, state.turn + 1),
  )
  opened = _open(decoder, state).sum(1, dtype=jnp.int32)
  state = replace(state, masked=jnp.where(commit, opened, state.masked))
  return _settle(decoder, state)


def _open(decoder: Decoder, state: DecodeState):
  """Masked slots that the row still has room for."""
  slot = jnp.arange(decoder.block, dtype=jnp.int32)[None]
  room = (state.rows.max_new - state.count)[:, None]
  return (state.block == decoder.mask_id) & (slot < room)


def _settle(decoder: Decoder, state: DecodeState) -> DecodeState:
  """Emits blocks that are complete; their rows end, or commit next.

  A block is complete when no slot that counts is masked before its first
  stop id.
  """
  stop = is_stop(state.block, state.rows)
  before_stop = jnp.cumsum(stop, 1) == 0
  complete = ~(_open(decoder, state) & before_stop).any(1)
  state = emit(state, state.block, jnp.where(complete, decoder.block, 0))
  return replace(state, phase=jnp.where(complete, COMMIT, DENOISE))
