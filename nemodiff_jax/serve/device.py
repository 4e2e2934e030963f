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

from nemodiff_jax.decode.adjust import Adjust
from nemodiff_jax.decode.prefill import Queries, begin_rows, prompt_pass
from nemodiff_jax.decode.sampling import with_logprobs
from nemodiff_jax.decode.state import (
  FULL,
  RUNNING,
  Decoder,
  DecodeState,
  Emitted,
  Picked,
  Rows,
  Weights,
  unpicked,
)
from nemodiff_jax.decode.trace import Before, before_pass
from nemodiff_jax.nn import xla
from nemodiff_jax.nn.cache import KVCache
from nemodiff_jax.nn.model import head
from nemodiff_jax.nn.sharding import HEADS
from nemodiff_jax.serve.slot_rows import NO_CACHE, put_row, settle
from nemodiff_jax.serve.steps import (
  Guides,
  counted,
  guided,
  masked,
  one_step,
)

PASSES = 8  # Of a visit, at most: an ended row holds its slot so long.

_compiled = functools.partial(
  jax.jit, static_argnames="decoder", compiler_options=xla.DECODING
)
_read = functools.partial(_compiled, donate_argnames="pool")
_jit = functools.partial(_compiled, donate_argnames=("pool", "slots", "adjust"))


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
    block: [B, C] tokens of the next pass.
    phase: [B] what the next pass is.
    before: [n, B, ...] what each pass began with; None unless traced.
  """

  emitted: Emitted
  nfe: Int[Array, "n B"]
  status: Int[Array, "n B"]
  count: Int[Array, ""]
  lengths: Int[Array, "B"]
  middle: Bool[Array, "B"]
  block: Int[Array, "B C"]
  phase: Int[Array, "B"]
  before: Before | None = None


@_jit
def visit(
  decoder: Decoder,
  weights: Weights,
  pool: KVCache,
  slots: DecodeState,
  table: Int[Array, "B M"],
  active: Bool[Array, "B"],
  limit: Int[Array, ""],
  adjust: Adjust | None = None,
  guides: Guides | None = None,
) -> tuple[KVCache, DecodeState, Adjust | None, Passed]:
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
    adjust: donated; how the rows of all slots change their logits.
    guides: what the host says of the first pass, beside `adjust`.
  """
  first = lambda tree: jax.tree.map(lambda x: x[: len(table)], tree)
  part = replace(first(slots), adjust=masked(first(adjust), guides))
  state = replace(
    part,
    cache=pool,
    table=table,
    block=_narrow(decoder, part.block),
    status=jnp.where(active, part.status, FULL),
  )
  if guides is not None:
    state = guided(state, guides)
  began = state.running

  def told(state, i):
    after, emitted = one_step(decoder, weights, guides, state, i)
    return after, _record(decoder, state, after, emitted)

  log = jax.tree.map(
    lambda x: jnp.zeros((PASSES, *x.shape), x.dtype),
    jax.eval_shape(lambda s: told(s, jnp.int32(0))[1], state),
  )

  cycle = len(decoder.mode.phases) if decoder.block > 1 else 1

  def going(carry):
    i, state, _ = carry
    none_ended = (state.running == began).all() | (i % cycle != 0)
    return (i < limit) & began.any() & none_ended

  def one(carry):
    i, state, log = carry
    state, record = told(state, i)
    log = jax.tree.map(lambda old, new: old.at[i].set(new), log, record)
    return i + 1, state, log

  start = (jnp.int32(0), state, log)
  count, state, log = lax.while_loop(going, one, start)
  passed = _passed(decoder, state, log, count)

  def put(old, new, before):
    keep = active.reshape(-1, *(1,) * (new.ndim - 1))
    return old.at[: len(table)].set(jnp.where(keep, new, before))

  if adjust is not None and state.adjust is not None:
    after = replace(state.adjust, mask=None)
    adjust = jax.tree.map(put, adjust, after, first(adjust))
  after = replace(
    state,
    cache=NO_CACHE,
    table=part.table,
    block=_widen(decoder, state, part),
    adjust=None,
  )
  slots = jax.tree.map(put, slots, after, replace(part, adjust=None))
  adjust, slots = settle(decoder, (adjust, slots))
  return settle(decoder, state.cache, HEADS), slots, adjust, passed


@_read
def read_chunk(
  decoder: Decoder,
  weights: Weights,
  pool: KVCache,
  queries: Queries,
) -> KVCache:
  """Reads tokens of one row into its pages; see `prefill.prompt_pass`."""
  _, pool = prompt_pass(decoder, weights, pool, queries)
  return settle(decoder, pool, HEADS)


@_read
def score_chunk(
  decoder: Decoder,
  weights: Weights,
  pool: KVCache,
  queries: Queries,
  following: Int[Array, "1 T"],
) -> tuple[KVCache, Picked]:
  """As `read_chunk`; and how likely the following token of each is."""
  hidden, pool = prompt_pass(decoder, weights, pool, queries)
  logits = head(decoder.module, weights.params, hidden)
  ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, None]
  logits = jnp.where(ids == decoder.mask_id, -jnp.inf, logits)
  return settle(decoder, pool, HEADS), with_logprobs(decoder, logits, following)


@_jit
def begin(
  decoder: Decoder,
  weights: Weights,
  pool: KVCache,
  slots: DecodeState,
  queries: Queries,
  rows: Rows,
  slot: Int[Array, ""],
  adjust: Adjust | None = None,
  own: Adjust | None = None,
) -> tuple[KVCache, DecodeState, Adjust | None, Passed]:
  """Reads the last tokens of a prompt and begins its row in a slot.

  `own` is how the row changes its logits, [1], with a mask for the first one;
  it is put among those of all slots, `adjust`, which are donated.
  """
  state, emitted = counted(
    begin_rows(decoder, weights, pool, queries, rows, own)
  )
  record = emitted, state.nfe, state.status, None
  log = jax.tree.map(lambda x: x[None], record)
  passed = _passed(decoder, state, log, jnp.int32(1))
  if adjust is not None and state.adjust is not None:
    adjust = put_row(adjust, replace(state.adjust, mask=None), slot)
  pool = state.cache
  row = replace(state, cache=NO_CACHE, table=slots.table[:1], adjust=None)
  adjust, slots = settle(decoder, (adjust, put_row(slots, row, slot)))
  return settle(decoder, pool, HEADS), slots, adjust, passed


def _record(
  decoder: Decoder, was: DecodeState, state: DecodeState, emitted: Emitted
) -> tuple[Emitted, Array, Array, Before | None]:
  seen = before_pass(was) if decoder.traced else None
  return emitted, state.nfe, state.status, seen


def _passed(decoder: Decoder, state: DecodeState, log, count) -> Passed:
  """What is told of passes that end in this state."""
  emitted, nfe, status, seen = log
  return Passed(
    emitted, nfe, status, count, state.lengths, _middle(decoder, state),
    state.block.token, state.phase, seen,
  )  # fmt: skip


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
