"""FastDiffuser: blocks of masks refined in a few bidirectional passes.

A row alternates between two phases. Denoising passes (nothing is kept in the
cache) reveal slots of the block until none that counts is masked; one causal
pass then commits the block, and its last logits seed the next. Rows do not
wait for each other: one forward pass serves rows in either phase.
"""

from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nemodiff_jax.decode.commit import reveal, schedule
from nemodiff_jax.decode.emit import emit, end_thinking, is_stop
from nemodiff_jax.decode.mode import Mode
from nemodiff_jax.decode.passes import block_pass, fresh_block, select
from nemodiff_jax.decode.sampling import proposal, read
from nemodiff_jax.decode.state import (
  Decoder,
  DecodeState,
  Emitted,
  Picked,
  Proposed,
  Weights,
  unpicked,
)

DENOISE, COMMIT = 0, 1


def begin(
  decoder: Decoder,
  weights: Weights,
  state: DecodeState,
  hidden: Float[Array, "B 1 D"],
) -> tuple[DecodeState, Emitted]:
  """The prefill (not counted) seeds slot 0 of the first block."""
  at = state.lengths[:, None]
  first, _ = read(decoder, weights, hidden, at, state, think=False)
  state = replace(state, block=_canvas(decoder, state, first))
  state = replace(state, masked=_open(decoder, state).sum(1, dtype=jnp.int32))
  return _finish_blocks(decoder, state, None)


def step(
  decoder: Decoder, weights: Weights, state: DecodeState
) -> tuple[DecodeState, Emitted]:
  """One pass: each row denoises its block or commits it."""
  commit = state.phase == COMMIT
  hidden, state = block_pass(decoder, weights, state, commit)
  slot = jnp.arange(decoder.block, dtype=jnp.int32)[None]
  shift = commit[:, None].astype(jnp.int32)
  positions = state.lengths[:, None] + slot + shift
  picked, sure = read(decoder, weights, hidden, positions, state, think=False)

  rows = state.rows
  quota = schedule(state.masked, rows.steps, state.turn, rows.threshold)
  shown = reveal(sure, _open(decoder, state), rows.threshold, quota)
  denoised = select(shown, picked, state.block)
  move = jnp.where(commit & state.running, decoder.block, 0)
  state = replace(
    state,
    lengths=state.lengths + move,
    turn=jnp.where(commit, 0, state.turn + 1),
  )
  seeded = _canvas(decoder, state, picked.part(slice(-1, None)))
  state = replace(state, block=select(commit[:, None], seeded, denoised))
  opened = _open(decoder, state).sum(1, dtype=jnp.int32)
  state = replace(state, masked=jnp.where(commit, opened, state.masked))
  return _finish_blocks(decoder, state, proposal(decoder, picked, sure))


def _canvas(decoder: Decoder, state: DecodeState, first: Picked) -> Picked:
  """A fresh block, with what is known to stand in it.

  That is what follows the output, as far as the block reaches (slot 0 then is
  open too: its seed knows nothing of that), and the end of a thinking budget.
  """
  slot = jnp.arange(decoder.block, dtype=jnp.int32)[None]
  behind = slot - (state.rows.max_new - state.count)[:, None]
  known = jnp.take_along_axis(state.rows.following, jnp.maximum(behind, 0), 1)
  known = jnp.where((behind >= 0) & (known >= 0), known, decoder.mask_id)
  sees = (known != decoder.mask_id).any(1, keepdims=True)
  batch, slots = known.shape
  given = unpicked(decoder, batch, slots, known)
  block = select(sees, given, fresh_block(decoder, first))
  forced = end_thinking(state, block.token, state.lengths[:, None] + slot)
  given = unpicked(decoder, batch, slots, state.rows.think_id[:, None])
  return select(forced, given, block)


def _open(decoder: Decoder, state: DecodeState) -> Bool[Array, "B C"]:
  """Masked slots that the row still has room for."""
  slot = jnp.arange(decoder.block, dtype=jnp.int32)[None]
  room = (state.rows.max_new - state.count)[:, None]
  return (state.block.token == decoder.mask_id) & (slot < room)


def _finish_blocks(
  decoder: Decoder, state: DecodeState, proposed: Proposed | None
) -> tuple[DecodeState, Emitted]:
  """Emits blocks that are complete; their rows end, or commit next.

  A block is complete when no slot that counts is masked before its first
  stop id.
  """
  stop = is_stop(state.block.token, state.rows)
  before_stop = jnp.cumsum(stop, 1) == 0
  complete = ~(_open(decoder, state) & before_stop).any(1)
  phase = jnp.where(complete, COMMIT, DENOISE).astype(jnp.int32)
  state = replace(state, phase=phase)
  count = jnp.where(complete, decoder.block, 0)
  return emit(state, state.block, count, proposed)


MODE = Mode(
  "diffusion",
  begin,
  step,
  phases=("denoise", "commit"),
  reveals=True,
  settings=("threshold", "steps_per_block", "following"),
)
