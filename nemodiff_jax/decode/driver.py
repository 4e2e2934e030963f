"""Two drivers over one step: a compiled loop, and a generator of states."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int

from nemodiff_jax.decode.prefill import MODE
from nemodiff_jax.decode.state import (
  RUNNING,
  STOPPED,
  Decoder,
  DecodeState,
  Weights,
)
from nemodiff_jax.nn import xla
from nemodiff_jax.text.stream import TextStream

_jit = functools.partial(
  jax.jit,
  static_argnames="decoder",
  donate_argnames="state",
  compiler_options=xla.DECODING,
)


@_jit
def run(decoder: Decoder, weights: Weights, state: DecodeState) -> DecodeState:
  """Decodes until every row has ended, without a word to the host.

  The state is donated: its buffers become those of the result.
  """
  step = functools.partial(MODE[decoder.mode].step, decoder, weights)
  return lax.while_loop(lambda s: s.running.any(), step, state)


@_jit
def one_pass(
  decoder: Decoder, weights: Weights, state: DecodeState
) -> DecodeState:
  """Runs one step; the state is donated."""
  return MODE[decoder.mode].step(decoder, weights, state)


def passes(
  decoder: Decoder,
  weights: Weights,
  state: DecodeState,
  streams: Sequence[TextStream | None] = (),
) -> Iterator[DecodeState]:
  """Yields the state now and after every pass, until every row has ended.

  A yielded state is donated to the next pass: copy what is to be kept.

  Args:
    decoder: static part.
    weights: parameters.
    state: after the prefill.
    streams: per row, what is told of every new token (but for the one that
      ends the row by its id); a row whose stop string is complete ends there.
  """
  told = [0] * len(streams)
  while True:
    state = _tell(state, streams, told)
    yield state
    if not bool(state.running.any()):
      return
    state = one_pass(decoder, weights, state)


def _tell(
  state: DecodeState, streams: Sequence[TextStream | None], told: list[int]
) -> DecodeState:
  if not any(streams):
    return state
  tokens, count, status = jax.device_get(
    (state.output.token, state.count, state.status)
  )
  kept, hit = count.copy(), np.zeros(len(count), bool)
  for row, stream in enumerate(streams):
    if stream is None:
      continue
    end = count[row] - (status[row] == STOPPED)
    while told[row] < end and not hit[row]:
      token = int(tokens[row, told[row]])
      told[row] += 1
      if stream.push(token):
        kept[row], hit[row] = told[row], True
    if status[row] != RUNNING:
      stream.close()
  return _end(state, kept, hit) if hit.any() else state


@functools.partial(jax.jit, donate_argnames="state")
def _end(
  state: DecodeState, count: Int[Array, "B"], hit: Bool[Array, "B"]
) -> DecodeState:
  status = jnp.where(hit, STOPPED, state.status).astype(jnp.int32)
  return dataclasses.replace(state, count=count, status=status)
