"""What a pass adds to the output, and where thinking ends."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from nemodiff_jax.decode.state import (
  FULL,
  RUNNING,
  STOPPED,
  DecodeState,
  Picked,
  Rows,
)


def is_stop(tokens: Int[Array, "B T"], rows: Rows) -> Bool[Array, "B T"]:
  """Whether a token ends its row."""
  return (tokens[:, :, None] == rows.stop_ids[:, None]).any(-1)


def emit(
  state: DecodeState, new: Picked, count: Int[Array, "B"]
) -> DecodeState:
  """Appends the first count[b] of new[b], and ends rows that are complete.

  A row keeps tokens up to its first stop id (included) and to max_new.
  """
  slot = jnp.arange(new.token.shape[1], dtype=jnp.int32)[None]
  take = jnp.minimum(count, state.rows.max_new - state.count)
  take = jnp.where(state.running, take, 0)
  stop = is_stop(new.token, state.rows) & (slot < take[:, None])
  stopped = stop.any(1)
  kept = jnp.where(stopped, jnp.argmax(stop, 1).astype(jnp.int32) + 1, take)
  row = jnp.arange(count.shape[0], dtype=jnp.int32)[:, None]
  at = jnp.where(
    slot < kept[:, None], state.count[:, None] + slot, state.cache.capacity
  )
  output = jax.tree.map(
    lambda old, x: old.at[row, at].set(x, mode="drop"), state.output, new
  )
  total = state.count + kept
  ended = jnp.where(
    stopped, STOPPED, jnp.where(total >= state.rows.max_new, FULL, RUNNING)
  )
  status = jnp.where(state.running, ended, state.status).astype(jnp.int32)
  return replace(state, output=output, count=total, status=status)


def has_thought(state: DecodeState) -> Bool[Array, "B"]:
  """Rows whose output holds the end-of-thinking token."""
  slot = jnp.arange(state.output.token.shape[1], dtype=jnp.int32)[None]
  ended = state.output.token == state.rows.think_id[:, None]
  return (ended & (slot < state.count[:, None])).any(1)


def end_thinking(
  state: DecodeState, tokens: Int[Array, "B T"], positions: Int[Array, "B T"]
) -> Bool[Array, "B T"]:
  """Where a row's thinking budget ends: its token has to stand there.

  Unless one came before, in the output or among the slots before.
  """
  ended = tokens == state.rows.think_id[:, None]
  before = jnp.cumsum(ended, 1) - ended.astype(jnp.int32) > 0
  due = positions == state.rows.think_at[:, None]
  return due & ~before & ~has_thought(state)[:, None]
