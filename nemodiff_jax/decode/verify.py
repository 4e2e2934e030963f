"""The verifier of both self-speculative modes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from nemodiff_jax.decode.emit import emit
from nemodiff_jax.decode.state import (
  DecodeState,
  Emitted,
  Picked,
  Proposed,
)


def accept(
  drafts: Int[Array, "B C"], verified: Int[Array, "B C"]
) -> Int[Array, "B"]:
  """Counts the leading drafts that the ar predictions confirm, and one more.

  verified[:, i] is the ar prediction after drafts[:, i]; drafts[:, 0] is
  known to be right. The result, 1..C, is how many of `verified` are right.
  """

  def slot(carry, pair):
    going, count = carry
    predicted, following = pair
    count = count + going.astype(jnp.int32)
    return (going & (predicted == following), count), None

  batch = drafts.shape[0]
  never = jnp.full((batch, 1), -1, drafts.dtype)  # Nothing follows the last.
  following = jnp.concatenate([drafts[:, 1:], never], 1)
  start = (jnp.ones(batch, bool), jnp.zeros(batch, jnp.int32))
  # Unrolled: a loop on the device would cut the pass's CUDA graph in two.
  slots = (verified.T, following.T)
  (_, count), _ = lax.scan(slot, start, slots, unroll=True)
  return count


def last_accepted(verified: Picked, count: Int[Array, "B"]) -> Picked:
  """The last of the count[b] >= 1 tokens of each row, [B, 1]."""

  def one(x):
    at = (count - 1).reshape((-1,) + (1,) * (x.ndim - 1))
    return jnp.take_along_axis(x, at, 1)

  return jax.tree.map(one, verified)


def take_accepted(
  state: DecodeState,
  verified: Picked,
  count: Int[Array, "B"],
  proposed: Proposed | None,
) -> tuple[DecodeState, Emitted]:
  """Commits and emits count[b] tokens of each row.

  A count of 0 leaves the row as it was.
  """
  count = jnp.where(state.running, count, 0)
  state = replace(state, lengths=state.lengths + count)
  return emit(state, verified, count, proposed, cycle=count)
