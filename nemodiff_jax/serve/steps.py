"""A pass of the engine: rows that the host guides beside those that run free."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from nemodiff_jax.decode import ar
from nemodiff_jax.decode.adjust import Adjust, count_tokens
from nemodiff_jax.decode.state import (
  FULL,
  Decoder,
  DecodeState,
  Emitted,
  Weights,
)
from nemodiff_jax.serve.slot_rows import NO_CACHE


@struct.dataclass
class Guides:
  """What the host says of the first pass of a visit.

  Attributes:
    mask: [B, C, W] see `Adjust`.
    draft: [B, C] tokens of the block, where they are given.
    phase: [B] what the pass is then.
    given: [B] rows whose block is given.
    once: [B] rows that run in this pass alone: the host has a word in each.
  """

  mask: Int[Array, "B C W"]
  draft: Int[Array, "B C"]
  phase: Int[Array, "B"]
  given: Bool[Array, "B"]
  once: Bool[Array, "B"]


def masked(adjust: Adjust | None, guides: Guides | None) -> Adjust | None:
  """The changes with the masks of the first pass."""
  if adjust is None or guides is None:
    return adjust
  return replace(adjust, mask=guides.mask)


def guided(state: DecodeState, guides: Guides) -> DecodeState:
  """Rows whose draft is given have it."""
  given = guides.given
  token = jnp.where(given[:, None], guides.draft, state.block.token)
  return replace(
    state,
    block=replace(state.block, token=token),
    phase=jnp.where(given, guides.phase, state.phase),
  )


def one_step(
  decoder: Decoder,
  weights: Weights,
  guides: Guides | None,
  state: DecodeState,
  i: Int[Array, ""],
) -> tuple[DecodeState, Emitted]:
  """Pass i of a visit; rows with a guide run in its first one alone."""
  if guides is None:
    return counted(_pass(decoder, weights, state))
  waits = guides.once & (i > 0) & state.running
  held = replace(state, status=jnp.where(waits, FULL, state.status))
  after, emitted = counted(_pass(decoder, weights, held))

  def keep(old, new):
    return jnp.where(waits.reshape(-1, *(1,) * (new.ndim - 1)), old, new)

  rest = jax.tree.map(
    keep, replace(state, cache=NO_CACHE), replace(after, cache=NO_CACHE)
  )
  return replace(rest, cache=after.cache), emitted


def _pass(
  decoder: Decoder, weights: Weights, state: DecodeState
) -> tuple[DecodeState, Emitted]:
  """One pass; a cycle of one slot is a plain ar pass."""
  if decoder.block > 1 or not decoder.mode.speculative:
    return decoder.mode.step(decoder, weights, state)
  state, emitted = ar.step(decoder, weights, state)
  return state, replace(emitted, cycle=emitted.count)


def counted(made: tuple[DecodeState, Emitted]) -> tuple[DecodeState, Emitted]:
  """What was emitted counts for penalties."""
  state, emitted = made
  if state.adjust is not None:
    tokens = emitted.picked.token
    adjust = count_tokens(state.adjust, tokens, emitted.count)
    state = replace(state, adjust=adjust)
  return state, emitted
