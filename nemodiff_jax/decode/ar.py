"""One token a pass."""

from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Array, Float

from nemodiff_jax.decode.emit import emit
from nemodiff_jax.decode.mode import Mode
from nemodiff_jax.decode.passes import block_pass, count_pass
from nemodiff_jax.decode.sampling import proposal, read
from nemodiff_jax.decode.state import Decoder, DecodeState, Emitted, Weights


def begin(
  decoder: Decoder,
  weights: Weights,
  state: DecodeState,
  hidden: Float[Array, "B 1 D"],
) -> tuple[DecodeState, Emitted]:
  """The prefill yields the first token and counts as its pass."""
  at = state.lengths[:, None]
  first, _ = read(decoder, weights, hidden, at, state, before=at)
  state = replace(state, block=first, nfe=count_pass(state))
  return emit(state, first, jnp.ones_like(state.count))


def step(
  decoder: Decoder, weights: Weights, state: DecodeState
) -> tuple[DecodeState, Emitted]:
  """Commits the last token and predicts the next."""
  causal = jnp.ones_like(state.running)
  hidden, state = block_pass(decoder, weights, state, causal)
  lengths = state.lengths + state.running.astype(jnp.int32)
  at, known = lengths[:, None], state.block.token
  token, sure = read(decoder, weights, hidden, at, state, before=known)
  state = replace(state, block=token, lengths=lengths)
  proposed = proposal(decoder, token, sure)
  return emit(state, token, jnp.ones_like(state.count), proposed)


MODE = Mode(
  "ar",
  begin,
  step,
  phases=("ar",),
  uses_blocks=False,
  masked=False,
)
