"""What the engine does on the device: pure functions, compiled.

The slots of an engine are one `DecodeState` of as many rows, without its
cache: that is the pool of pages, which every function here takes and gives
back. A visit runs over the first slots alone.
"""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Int

from nemodiff_jax.decode import ar
from nemodiff_jax.decode.prefill import first_hidden, prompt_pass
from nemodiff_jax.decode.state import (
  FULL,
  RUNNING,
  Decoder,
  DecodeState,
  Emitted,
  Picked,
  Rows,
  Weights,
  new_state,
  unpicked,
)
from nemodiff_jax.nn import xla
from nemodiff_jax.nn.cache import KVCache

PASSES = 8  # Of a visit, at most.
NO_CACHE = KVCache((), ())

_jit = functools.partial(
  jax.jit,
  static_argnames="decoder",
  donate_argnames=("pool", "slots"),
  compiler_options=xla.DECODING,
)


@struct.dataclass
class Passed:
  """What the passes of a visit did, one after the other.

  Attributes:
    emitted: its leaves are [n, B, ...].
    nfe: [n, B] of each row after the pass.
    status: [n, B] after the pass.
    count: passes that ran; what lies behind is nothing.
    lengths: [B] committed positions in the end.
    middle: [B] whether the row is inside a cycle in the end.
  """

  emitted: Emitted
  nfe: Int[Array, "n B"]
  status: Int[Array, "n B"]
  count: Int[Array, ""]
  lengths: Int[Array, "B"]
  middle: Bool[Array, "B"]


def empty_slots(decoder: Decoder, size: int, rows: Rows) -> DecodeState:
  """Slots that hold no row, with settings of the shapes of `rows` [1]."""
  rows = jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype), rows)
  table = jnp.zeros((size, 1), jnp.int32)
  lengths = jnp.zeros(size, jnp.int32)
  return replace(
    new_state(decoder, NO_CACHE, table, rows, lengths), table=table
  )


@_jit
def visit(
  decoder: Decoder,
  weights: Weights,
  pool: KVCache,
  slots: DecodeState,
  table: Int[Array, "B M"],
  active: Bool[Array, "B"],
  limit: Int[Array, ""],
) -> tuple[KVCache, DecodeState, Passed]:
  """Up to `limit` passes over the first B slots; fewer if a row ends.

  The loop ends behind whole cycles only: so rows whose cycles have as many
  passes are between two of them, and the next visit may be of another width.

  Args:
    decoder: static part; its block may be narrower than that of the slots,
      where no active row is inside a cycle.
    weights: parameters.
    pool: donated.
    slots: donated.
    table: pages of each row.
    active: rows that take part; the others stay as they are.
    limit: at most PASSES.
  """
  part = jax.tree.map(lambda x: x[: len(table)], slots)
  state = replace(
    part,
    cache=pool,
    table=table,
    block=_narrow(decoder, part.block),
    status=jnp.where(active, part.status, FULL),
  )
  began = state.running
  step = functools.partial(_step, decoder, weights)
  log = jax.tree.map(
    lambda x: jnp.zeros((PASSES, *x.shape), x.dtype),
    jax.eval_shape(lambda s: _record(*step(s)), state),
  )

  cycle = len(decoder.mode.phases) if decoder.block > 1 else 1

  def going(carry):
    i, state, _ = carry
    none_ended = (state.running == began).all() | (i % cycle != 0)
    return (i < limit) & began.any() & none_ended

  def one(carry):
    i, state, log = carry
    state, emitted = step(state)
    record = _record(state, emitted)
    log = jax.tree.map(lambda old, new: old.at[i].set(new), log, record)
    return i + 1, state, log

  start = (jnp.int32(0), state, log)
  count, state, (emitted, nfe, status) = lax.while_loop(going, one, start)
  passed = Passed(
    emitted, nfe, status, count, state.lengths, _middle(decoder, state)
  )
  pool = state.cache
  after = replace(
    state, cache=NO_CACHE, table=part.table, block=_widen(decoder, state, part)
  )

  def put(old, new, before):
    keep = active.reshape(-1, *(1,) * (new.ndim - 1))
    return old.at[: len(table)].set(jnp.where(keep, new, before))

  return pool, jax.tree.map(put, slots, after, part), passed


@functools.partial(jax.jit, static_argnames="decoder", donate_argnames="pool")
def read_chunk(
  decoder: Decoder,
  weights: Weights,
  pool: KVCache,
  table: Int[Array, "1 M"],
  tokens: Int[Array, "1 T"],
  positions: Int[Array, "1 T"],
  length: Int[Array, "1"],
) -> KVCache:
  """Reads tokens of one row into its pages; see `prefill.prompt_pass`."""
  return prompt_pass(decoder, weights, pool, table, tokens, positions, length)[
    1
  ]


@_jit
def begin(
  decoder: Decoder,
  weights: Weights,
  pool: KVCache,
  slots: DecodeState,
  table: Int[Array, "1 M"],
  tokens: Int[Array, "1 T"],
  positions: Int[Array, "1 T"],
  length: Int[Array, "1"],
  rows: Rows,
  slot: Int[Array, ""],
) -> tuple[KVCache, DecodeState, Passed]:
  """Reads the last tokens of a prompt and begins its row in a slot."""
  hidden, pool = prompt_pass(
    decoder, weights, pool, table, tokens, positions, length
  )
  state = new_state(decoder, pool, table, rows, length)
  first = first_hidden(decoder, hidden)
  state, emitted = decoder.mode.begin(decoder, weights, state, first)
  emitted, nfe, status = jax.tree.map(
    lambda x: x[None], _record(state, emitted)
  )
  middle = _middle(decoder, state)
  passed = Passed(emitted, nfe, status, jnp.int32(1), state.lengths, middle)
  pool = state.cache
  block = state.block
  if decoder.logprobs is None:  # The slots may keep some, for other rows.
    kept = jax.tree.map(lambda x: x[:1], slots.block)
    block = replace(kept, token=block.token)
  row = replace(state, cache=NO_CACHE, table=slots.table[:1], block=block)
  return pool, _put(slots, row, slot), passed


@jax.jit
def take(slots: DecodeState, slot: Int[Array, ""]) -> DecodeState:
  """The row in a slot, [1]."""
  return jax.tree.map(lambda x: x[slot][None], slots)


@functools.partial(jax.jit, donate_argnames="slots")
def put(
  slots: DecodeState, row: DecodeState, slot: Int[Array, ""]
) -> DecodeState:
  """Puts a row [1] into a slot."""
  return _put(slots, row, slot)


@functools.partial(jax.jit, static_argnames="decoder")
def redraft(decoder: Decoder, row: DecodeState) -> DecodeState:
  """The row with its draft, of whatever width, still to be made."""
  token = row.block.token.at[:, 1:].set(decoder.mask_id)
  block = replace(row.block, token=token)
  return replace(row, block=block, phase=jnp.zeros_like(row.phase))


@functools.partial(jax.jit, donate_argnames="slots")
def move(
  slots: DecodeState, start: Int[Array, "n"], stop: Int[Array, "n"]
) -> DecodeState:
  """Rows of slots `start` go to slots `stop`; a stop behind all: none."""
  return jax.tree.map(lambda x: x.at[stop].set(x[start], mode="drop"), slots)


def _put(slots: DecodeState, row: DecodeState, slot: Array) -> DecodeState:
  return jax.tree.map(lambda x, y: x.at[slot].set(y[0]), slots, row)


def _step(
  decoder: Decoder, weights: Weights, state: DecodeState
) -> tuple[DecodeState, Emitted]:
  """One pass; a cycle of one slot is a plain ar pass."""
  if decoder.block > 1 or not decoder.mode.speculative:
    return decoder.mode.step(decoder, weights, state)
  state, emitted = ar.step(decoder, weights, state)
  return state, replace(emitted, cycle=emitted.count)


def _record(
  state: DecodeState, emitted: Emitted
) -> tuple[Emitted, Array, Array]:
  return emitted, state.nfe, state.status


def _middle(decoder: Decoder, state: DecodeState) -> Bool[Array, "B"]:
  """Rows that are inside a cycle: their block has more than its first token."""
  known = state.block.token[:, 1:] != decoder.mask_id
  inside = (state.phase != 0) | (known & decoder.mode.reveals).any(1)
  return inside & (state.status == RUNNING)


def _narrow(decoder: Decoder, block: Picked) -> Picked:
  """What a pass of this decoder uses of blocks as the slots have them."""
  if decoder.logprobs is None:
    block = Picked(block.token)
  return block.part(slice(decoder.block))


def _widen(decoder: Decoder, state: DecodeState, before: DecodeState) -> Picked:
  """The blocks of a state as the slots have them."""
  rows, wide = before.block.token.shape
  if decoder.logprobs is None:  # No active row keeps any.
    token = before.block.token.at[:, : decoder.block].set(state.block.token)
    token = token.at[:, decoder.block :].set(decoder.mask_id)
    return replace(before.block, token=token)
  more = unpicked(decoder, rows, wide - decoder.block, decoder.mask_id)
  join = lambda a, b: jnp.concatenate([a, b], 1)
  return jax.tree.map(join, state.block, more)
