"""The state of a batch, and the pass that every mode runs."""

import dataclasses
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt

from nemodiff_jax.nn.attention import CachedPass
from nemodiff_jax.nn.cache import KVCache
from nemodiff_jax.nn.lora import LoraLayer
from nemodiff_jax.nn.model import Params, Transformer, cached_pass

RUNNING, STOPPED, FULL = 0, 1, 2  # Values of DecodeState.status.


@dataclasses.dataclass(frozen=True)
class Decoder:
  """The static part of a compiled program.

  Attributes:
    module: the model.
    mode: one of config.MODES.
    block: C; 1 in ar mode.
    sampled: whether any row has a temperature above 0.
    filtered: whether any such row sets top_k, top_p or min_p.
    logprobs: keep the log-probability of each token, and of this many of the
      likeliest; None: keep none.
    traced: keep what each pass proposed.
    attention: implementation of range attention; None: chosen.
  """

  module: Transformer
  mode: str
  block: int
  sampled: bool = False
  filtered: bool = False
  logprobs: int | None = None
  traced: bool = False
  attention: str | None = None

  @property
  def mask_id(self) -> int:
    """The mask id; -1, which no token equals, where there is none."""
    mask = self.module.config.mask_id
    return -1 if mask is None else mask


@struct.dataclass
class Picked:
  """Tokens, and how likely they were when they were picked.

  Log-probabilities are of the distribution really sampled from: after
  temperature, top_k, top_p and min_p, without the mask id. A token that a
  thinking budget forced has its own, before the filters; NaN in diffusion,
  which writes it into the canvas without reading logits.

  Attributes:
    token: [B, T].
    logprob: [B, T] of the token; None where not kept (as those below).
    top_ids: [B, T, k] the likeliest tokens.
    top_logprobs: [B, T, k] of these.
  """

  token: Int[Array, "B T"]
  logprob: Float[Array, "B T"] | None = None
  top_ids: Int[Array, "B T k"] | None = None
  top_logprobs: Float[Array, "B T k"] | None = None

  def part(self, index) -> "Picked":
    """The slots that index picks from the second axis."""
    return jax.tree.map(lambda x: x[:, index], self)


@struct.dataclass
class Proposed:
  """What a pass would put in each slot, for a trace.

  Attributes:
    token: [B, C].
    confidence: [B, C] softmax(logits) at the token.
  """

  token: Int[Array, "B C"]
  confidence: Float[Array, "B C"]


def select(mask: Bool[Array, "B T"], a: Picked, b: Picked) -> Picked:
  """A where the mask is set, b elsewhere."""

  def one(x, y):
    wide = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
    return jnp.where(wide, x, y)

  return jax.tree.map(one, a, b)


def unpicked(
  decoder: Decoder, batch: int, slots: int, token: int | Array
) -> Picked:
  """Slots that hold `token` (of all, or [B, 1]) and no probabilities."""
  k, shape = decoder.logprobs, (batch, slots)
  tokens = jnp.full(shape, token, jnp.int32)
  if k is None:
    return Picked(tokens)
  return Picked(
    tokens,
    jnp.full(shape, jnp.nan),
    jnp.zeros((*shape, k), jnp.int32),
    jnp.full((*shape, k), jnp.nan),
  )


@struct.dataclass
class Weights:
  """Arrays of the checkpoint.

  Attributes:
    params: the Linen parameters.
    lora: the drafter of linear_spec, one entry per layer; None: none.
  """

  params: Params
  lora: tuple[LoraLayer, ...] | None = None


@struct.dataclass
class Rows:
  """What each row asked for; constant while decoding.

  Attributes:
    max_new: [B] tokens to generate at most.
    stop_ids: [B, E] ids that end the row, padded with -1.
    temperature: [B]; 0 is greedy.
    top_k: [B]; 0 keeps all.
    top_p: [B].
    min_p: [B].
    seed: [B, 2] high and low word.
    think_at: [B] position at which thinking has to end; -1: none.
    think_id: [B] the token that ends it; -1: none.
    threshold: [B] of diffusion; above 1: none.
    steps: [B] of diffusion, per block.
    draft_threshold: [B] of linear_spec.
  """

  max_new: Int[Array, "B"]
  stop_ids: Int[Array, "B E"]
  temperature: Float[Array, "B"]
  top_k: Int[Array, "B"]
  top_p: Float[Array, "B"]
  min_p: Float[Array, "B"]
  seed: UInt[Array, "B 2"]
  think_at: Int[Array, "B"]
  think_id: Int[Array, "B"]
  threshold: Float[Array, "B"]
  steps: Int[Array, "B"]
  draft_threshold: Float[Array, "B"]


@struct.dataclass
class DecodeState:
  """Everything that changes from pass to pass.

  Attributes:
    cache: keys and values; of row b, the first lengths[b] positions count.
    rows: what each row asked for.
    lengths: [B] committed positions.
    block: [B, C] the tokens of the next pass; the mask id is an open slot.
    proposed: what the last pass would put in each slot, and how sure it was;
      None unless traced.
    phase: [B] what the next pass is for the row; 0 and 1 as the mode says.
    turn: [B] denoising passes the block has had.
    masked: [B] open slots the block began with.
    output: [B, S] what was generated; of row b, the first count[b] count.
    count: [B] tokens known.
    nfe: [B] passes that ran for the row.
    status: [B] RUNNING, STOPPED or FULL.
    accepted: [B, S] tokens accepted per cycle (speculative modes).
    cycles: [B] cycles that ran.
  """

  cache: KVCache
  rows: Rows
  lengths: Int[Array, "B"]
  block: Picked
  proposed: Proposed | None
  phase: Int[Array, "B"]
  turn: Int[Array, "B"]
  masked: Int[Array, "B"]
  output: Picked
  count: Int[Array, "B"]
  nfe: Int[Array, "B"]
  status: Int[Array, "B"]
  accepted: Int[Array, "B S"]
  cycles: Int[Array, "B"]

  @property
  def running(self) -> Bool[Array, "B"]:
    """Rows that have not ended."""
    return self.status == RUNNING


def new_state(
  decoder: Decoder, cache: KVCache, rows: Rows, lengths: Int[Array, "B"]
) -> DecodeState:
  """The state right after the prefill; rows of length 0 are padding.

  `rows.think_at` still counts from the first generated token.
  """
  batch, capacity = lengths.shape[0], cache.capacity
  think_at = jnp.where(rows.think_at >= 0, rows.think_at + lengths, -1)
  rows = replace(rows, think_at=think_at)

  def zeros(*shape: int) -> Array:  # One array a field: they are donated.
    return jnp.zeros((batch, *shape), jnp.int32)

  return DecodeState(
    cache=cache,
    rows=rows,
    lengths=lengths,
    block=unpicked(decoder, batch, decoder.block, 0),
    proposed=Proposed(
      jnp.zeros((batch, decoder.block), jnp.int32),
      jnp.zeros((batch, decoder.block)),
    )
    if decoder.traced
    else None,
    phase=zeros(),
    turn=zeros(),
    masked=zeros(),
    output=unpicked(decoder, batch, capacity, 0),
    count=zeros(),
    nfe=zeros(),
    status=jnp.where(lengths > 0, RUNNING, FULL).astype(jnp.int32),
    accepted=zeros(capacity),
    cycles=zeros(),
  )


def block_pass(
  decoder: Decoder,
  weights: Weights,
  state: DecodeState,
  causal: Bool[Array, "B"],
  lora: tuple[LoraLayer, ...] | None = None,
) -> tuple[Float[Array, "B C D"], DecodeState]:
  """Hidden states of each row's block behind its committed prefix.

  A causal row sees, from slot i, the prefix and slots 0..i; any other row
  sees the whole block. `lora` works in the rows that are not causal.
  Rows that have ended see and write nothing. Raises nfe by one.
  """
  slots = jnp.arange(state.block.token.shape[1], dtype=jnp.int32)[None]
  positions = state.lengths[:, None] + slots
  whole = jnp.broadcast_to(positions[:, -1:], positions.shape)
  k_end = jnp.where(causal[:, None], positions, whole) + 1
  on = state.running[:, None]
  where = CachedPass(
    positions=positions,
    slots=jnp.where(on, positions, state.cache.capacity),
    k_end=jnp.where(on, k_end, 0),
    attention=decoder.attention,
  )
  hidden, cache = cached_pass(
    decoder.module,
    weights.params,
    state.block.token,
    where,
    state.cache,
    lora,
    ~causal,
  )
  nfe = state.nfe + state.running.astype(jnp.int32)
  return hidden, replace(state, cache=cache, nfe=nfe)


def fresh_block(decoder: Decoder, first: Picked) -> Picked:
  """[first, mask, mask, ...] of first [B, 1]."""
  batch = first.token.shape[0]
  masks = unpicked(decoder, batch, decoder.block - 1, decoder.mask_id)
  return jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), first, masks)
