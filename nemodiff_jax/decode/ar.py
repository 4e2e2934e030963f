"""One token a pass."""

from dataclasses import replace

import jax.numpy as jnp

from nemodiff_jax.decode.emit import emit
from nemodiff_jax.decode.sampling import read, trace
from nemodiff_jax.decode.state import (
  Decoder,
  DecodeState,
  Picked,
  Weights,
  block_pass,
)


def begin(decoder: Decoder, state: DecodeState, first: Picked) -> DecodeState:
  """The prefill yields the first token [B, 1] and counts as its pass."""
  del decoder
  nfe = state.nfe + state.running.astype(jnp.int32)
  state = replace(state, block=first, nfe=nfe)
  return emit(state, first, jnp.ones_like(state.count))


def step(decoder: Decoder, weights: Weights, state: DecodeState) -> DecodeState:
  """Commits the last token and predicts the next."""
  causal = jnp.ones_like(state.running)
  hidden, state = block_pass(decoder, weights, state, causal)
  lengths = state.lengths + state.running.astype(jnp.int32)
  token, sure = read(decoder, weights, hidden, lengths[:, None], state)
  state = trace(decoder, state, token, sure)
  state = replace(state, block=token, lengths=lengths)
  return emit(state, token, jnp.ones_like(state.count))
