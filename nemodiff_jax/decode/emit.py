"""What a pass adds to a row, and where thinking ends."""

from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from nemodiff_jax.decode.state import (
  FULL,
  RUNNING,
  STOPPED,
  DecodeState,
  Emitted,
  Picked,
  Proposed,
  Rows,
)


def is_stop(tokens: Int[Array, "B T"], rows: Rows) -> Bool[Array, "B T"]:
  """Whether a token ends its row."""
  return (tokens[:, :, None] == rows.stop_ids[:, None]).any(-1)


def emit(
  state: DecodeState,
  new: Picked,
  count: Int[Array, "B"],
  proposed: Proposed | None = None,
  cycle: Int[Array, "B"] | None = None,
) -> tuple[DecodeState, Emitted]:
  """Adds the first count[b] of new[b], and ends rows that are complete.

  A row keeps tokens up to its first stop id (included) and to max_new; one
  that has ended keeps none.
  """
  slot = jnp.arange(new.token.shape[1], dtype=jnp.int32)[None]
  take = jnp.minimum(count, state.rows.max_new - state.count)
  take = jnp.where(state.running, take, 0)
  stop = is_stop(new.token, state.rows) & (slot < take[:, None])
  stopped = stop.any(1)
  kept = jnp.where(stopped, jnp.argmax(stop, 1).astype(jnp.int32) + 1, take)
  ends_thought = new.token == state.rows.think_id[:, None]
  thought = (ends_thought & (slot < kept[:, None])).any(1)
  total = state.count + kept
  ended = jnp.where(
    stopped, STOPPED, jnp.where(total >= state.rows.max_new, FULL, RUNNING)
  )
  status = jnp.where(state.running, ended, state.status).astype(jnp.int32)
  state = replace(
    state, count=total, status=status, thought=state.thought | thought
  )
  cycle = jnp.zeros_like(kept) if cycle is None else cycle
  return state, Emitted(new, kept, cycle, proposed)


def end_thinking(
  state: DecodeState, tokens: Int[Array, "B T"], positions: Int[Array, "B T"]
) -> Bool[Array, "B T"]:
  """Where a row's thinking budget ends: its token has to stand there.

  Unless one came before, in the output or among the slots before.
  """
  ended = tokens == state.rows.think_id[:, None]
  before = jnp.cumsum(ended, 1) - ended.astype(jnp.int32) > 0
  due = positions == state.rows.think_at[:, None]
  return due & ~before & ~state.thought[:, None]
