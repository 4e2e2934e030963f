"""The compiled drivers over one step: a whole decode, and a single pass."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from nemodiff_jax.decode.log import Log, fold
from nemodiff_jax.decode.state import (
  RUNNING,
  STOPPED,
  Decoder,
  DecodeState,
  Emitted,
  Weights,
)
from nemodiff_jax.nn import xla

_jit = functools.partial(
  jax.jit, static_argnames="decoder", compiler_options=xla.DECODING
)


@functools.partial(_jit, donate_argnames=("state", "log"))
def run(
  decoder: Decoder, weights: Weights, state: DecodeState, log: Log
) -> tuple[DecodeState, Log]:
  """Decodes until every row has ended, without a word to the host.

  State and log are donated: their buffers become those of the result.
  """

  def one(carry):
    state, log = carry
    state, emitted = decoder.mode.step(decoder, weights, state)
    return state, fold(log, state, emitted)

  return lax.while_loop(lambda c: c[0].running.any(), one, (state, log))


@functools.partial(_jit, donate_argnames="state")
def one_pass(
  decoder: Decoder, weights: Weights, state: DecodeState
) -> tuple[DecodeState, Emitted]:
  """Runs one step; the state is donated."""
  return decoder.mode.step(decoder, weights, state)


@functools.partial(jax.jit, donate_argnames="state")
def end_rows(state: DecodeState, ended: Bool[Array, "B"]) -> DecodeState:
  """Stops rows that run, for reasons that the device does not see."""
  stopped = ended & (state.status == RUNNING)
  status = jnp.where(stopped, STOPPED, state.status).astype(jnp.int32)
  return replace(state, status=status)
