"""One token a pass."""

from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Array, Int

from nemodiff_jax.decode.sampling import choose
from nemodiff_jax.decode.state import (
  Decoder,
  DecodeState,
  Weights,
  block_pass,
  emit,
)


def begin(
  decoder: Decoder, state: DecodeState, first: Int[Array, "B 1"]
) -> DecodeState:
  """The prefill yields the first token and counts as its pass."""
  state = replace(
    state, block=first, nfe=state.nfe + state.running.astype(jnp.int32)
  )
  return emit(state, first, jnp.ones_like(state.count))


def step(decoder: Decoder, weights: Weights, state: DecodeState) -> DecodeState:
  """Commits the last token and predicts the next."""
  causal = jnp.ones_like(state.running)
  logits, state = block_pass(decoder, weights, state, causal)
  lengths = state.lengths + state.running.astype(jnp.int32)
  token = choose(decoder, logits, lengths[:, None], state.rows)
  state = replace(state, block=token, lengths=lengths)
  return emit(state, token, jnp.ones_like(state.count))
