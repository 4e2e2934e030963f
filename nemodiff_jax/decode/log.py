"""What the compiled loop keeps of every pass: the outputs of a batch."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int

from nemodiff_jax.decode.state import (
  Decoder,
  DecodeState,
  Emitted,
  Picked,
  unpicked,
)


@struct.dataclass
class Log:
  """Outputs; of row b the first DecodeState.count[b] tokens count.

  Attributes:
    output: [B, S] what was generated.
    accepted: [B, S] tokens accepted per cycle (speculative modes).
    cycles: [B] cycles that ran.
  """

  output: Picked
  accepted: Int[Array, "B S"]
  cycles: Int[Array, "B"]


def new_log(decoder: Decoder, batch: int, size: int) -> Log:
  """An empty log with room for `size` tokens a row."""
  return Log(
    output=unpicked(decoder, batch, size, 0),
    accepted=jnp.zeros((batch, size), jnp.int32),
    cycles=jnp.zeros(batch, jnp.int32),
  )


def fold(log: Log, state: DecodeState, emitted: Emitted) -> Log:
  """Adds what the pass that led to `state` emitted."""
  size = log.accepted.shape[1]
  slot = jnp.arange(emitted.picked.token.shape[1], dtype=jnp.int32)[None]
  row = jnp.arange(log.cycles.shape[0], dtype=jnp.int32)
  start = (state.count - emitted.count)[:, None]
  at = jnp.where(slot < emitted.count[:, None], start + slot, size)
  output = jax.tree.map(
    lambda old, new: old.at[row[:, None], at].set(new, mode="drop"),
    log.output,
    emitted.picked,
  )
  cycle = emitted.cycle > 0
  at = jnp.where(cycle, log.cycles, size)
  return replace(
    log,
    output=output,
    accepted=log.accepted.at[row, at].set(emitted.cycle, mode="drop"),
    cycles=log.cycles + cycle.astype(jnp.int32),
  )
