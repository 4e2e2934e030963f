"""LinearSpec: a diffusion draft, verified by an ar pass of the same weights.

Rows alternate between drafting (bidirectional, with the drafter LoRA, nothing
kept) and verification (causal, without it). Greedy or sampled, the output is
the ar output.
"""

from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Array, Float

from nemodiff_jax.decode.commit import reveal
from nemodiff_jax.decode.emit import emit
from nemodiff_jax.decode.mode import Mode
from nemodiff_jax.decode.passes import (
  block_pass,
  count_pass,
  fresh_block,
  select,
)
from nemodiff_jax.decode.sampling import proposal, read
from nemodiff_jax.decode.state import Decoder, DecodeState, Emitted, Weights
from nemodiff_jax.decode.verify import accept, last_accepted, take_accepted

DRAFT, VERIFY = 0, 1


def begin(
  decoder: Decoder,
  weights: Weights,
  state: DecodeState,
  hidden: Float[Array, "B 1 D"],
) -> tuple[DecodeState, Emitted]:
  """The prefill counts as a pass and yields the first token."""
  at = state.lengths[:, None]
  first, _ = read(decoder, weights, hidden, at, state, before=at)
  block = fresh_block(decoder, first)
  state = replace(state, block=block, nfe=count_pass(state))
  return emit(state, block, jnp.ones_like(state.count))


def step(
  decoder: Decoder, weights: Weights, state: DecodeState
) -> tuple[DecodeState, Emitted]:
  """One pass: each row drafts its block or verifies it."""
  verify = state.phase == VERIFY
  hidden, state = block_pass(decoder, weights, state, verify, weights.lora)
  slot = jnp.arange(decoder.block, dtype=jnp.int32)[None]
  shift = verify[:, None].astype(jnp.int32)
  positions = state.lengths[:, None] + slot + shift
  known = jnp.where(verify[:, None], state.block.token, -1)
  picked, sure = read(decoder, weights, hidden, positions, state, before=known)

  masked = state.block.token == decoder.mask_id
  one = jnp.ones_like(state.count)
  shown = reveal(sure, masked, state.rows.draft_threshold, one)
  drafted = select(shown, picked, state.block)
  ready = ~(drafted.token == decoder.mask_id).any(1)

  count = accept(state.block.token, picked.token)
  renewed = fresh_block(decoder, last_accepted(picked, count))
  state = replace(
    state,
    block=select(verify[:, None], renewed, drafted),
    phase=jnp.where(~verify & ready, VERIFY, DRAFT).astype(jnp.int32),
  )
  count = jnp.where(verify, count, 0)
  return take_accepted(state, picked, count, proposal(decoder, picked, sure))


MODE = Mode(
  "linear_spec",
  begin,
  step,
  phases=("draft", "verify"),
  reveals=True,
  drafter=True,
  speculative=True,
  settings=("draft_threshold",),
)
