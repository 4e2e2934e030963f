"""Two drivers over one step: a compiled loop, and a generator of states."""

import functools
from collections.abc import Iterator

import jax
from jax import lax

from nemodiff_jax.decode.prefill import MODE
from nemodiff_jax.decode.state import Decoder, DecodeState, Weights


@functools.partial(jax.jit, static_argnames="decoder", donate_argnames="state")
def run(decoder: Decoder, weights: Weights, state: DecodeState) -> DecodeState:
  """Decodes until every row has ended, without a word to the host.

  The state is donated: its buffers become those of the result.
  """
  step = functools.partial(MODE[decoder.mode].step, decoder, weights)
  return lax.while_loop(lambda s: s.running.any(), step, state)


def passes(
  decoder: Decoder, weights: Weights, state: DecodeState
) -> Iterator[DecodeState]:
  """Yields the state now and after every pass, until every row has ended.

  A yielded state is donated to the next pass: copy what is to be kept.
  """
  yield state
  while bool(state.running.any()):
    state = _one(decoder, weights, state)
    yield state


@functools.partial(jax.jit, static_argnames="decoder", donate_argnames="state")
def _one(decoder: Decoder, weights: Weights, state: DecodeState) -> DecodeState:
  return MODE[decoder.mode].step(decoder, weights, state)
