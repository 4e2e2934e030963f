"""The data of decoding: what is asked, what changes, and what a pass emits."""

import dataclasses
import enum
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt

from nemodiff_jax.decode.adjust import Adjust
from nemodiff_jax.decode.mode import Mode
from nemodiff_jax.nn.cache import KVCache
from nemodiff_jax.nn.lora import LoraLayer
from nemodiff_jax.nn.model import Params, Transformer
from pallas_kernels.range_attention import PAGE

RUNNING, STOPPED, FULL = 0, 1, 2  # Values of DecodeState.status.


class Sampling(enum.IntEnum):
  """What the rows of a pass ask of its logits, the cheapest first."""

  GREEDY = 0  # No row has a temperature.
  PLAIN = 1  # Some row has, none filters.
  FILTERED = 2  # Some row with a temperature sets top_k, top_p or min_p.


@dataclasses.dataclass(frozen=True)
class Decoder:
  """The static part of a compiled program.

  Attributes:
    module: the model.
    mode: how it decodes.
    block: C; 1 in ar mode.
    sampling: what its rows ask of the logits; None: found in every pass, from
      the rows that run.
    logprobs: keep the log-probability of each token, and of this many of the
      likeliest; None: keep none.
    traced: keep what each pass proposed.
    attention: implementation of range attention; None: chosen.
  """

  module: Transformer
  mode: Mode
  block: int
  sampling: Sampling | None = Sampling.GREEDY
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


@struct.dataclass
class Emitted:
  """What a pass added to each row.

  Attributes:
    picked: [B, T] tokens; of row b, the first count[b] are new.
    count: [B] how many.
    cycle: [B] tokens that the verification of a draft confirmed, before the
      output is cut; 0 where the pass was none.
    proposed: what the pass would put in each slot; None unless traced.
  """

  picked: Picked
  count: Int[Array, "B"]
  cycle: Int[Array, "B"]
  proposed: Proposed | None = None


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
    following: [B, C] of diffusion: ids behind max_new; -1: none. Of other
      modes [B, 0].
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
  following: Int[Array, "B C"]


@struct.dataclass
class DecodeState:
  """Everything that changes from pass to pass; few numbers but for the cache.

  Attributes:
    cache: keys and values; of row b, the first lengths[b] positions count.
    table: [B, M] the pages of each row in it.
    rows: what each row asked for.
    lengths: [B] committed positions.
    block: [B, C] the tokens of the next pass; the mask id is an open slot.
    phase: [B] what the next pass is for the row, by Mode.phases.
    turn: [B] denoising passes the block has had.
    masked: [B] open slots the block began with.
    thought: [B] whether the output holds the end-of-thinking token.
    count: [B] tokens generated.
    nfe: [B] passes that ran for the row.
    status: [B] RUNNING, STOPPED or FULL.
    adjust: how rows change their logits; None: none does.
  """

  cache: KVCache
  table: Int[Array, "B M"]
  rows: Rows
  lengths: Int[Array, "B"]
  block: Picked
  phase: Int[Array, "B"]
  turn: Int[Array, "B"]
  masked: Int[Array, "B"]
  thought: Bool[Array, "B"]
  count: Int[Array, "B"]
  nfe: Int[Array, "B"]
  status: Int[Array, "B"]
  adjust: Adjust | None = None

  @property
  def capacity(self) -> int:
    """Positions that a row's pages hold."""
    return self.table.shape[1] * PAGE

  @property
  def running(self) -> Bool[Array, "B"]:
    """Rows that have not ended."""
    return self.status == RUNNING


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


def new_state(
  decoder: Decoder,
  cache: KVCache,
  table: Int[Array, "B M"],
  rows: Rows,
  lengths: Int[Array, "B"],
) -> DecodeState:
  """The state right after the prefill; rows of length 0 are padding.

  `rows.think_at` still counts from the first generated token.
  """
  batch = lengths.shape[0]
  think_at = jnp.where(rows.think_at >= 0, rows.think_at + lengths, -1)

  def zeros(dtype=jnp.int32) -> Array:  # One array a field: they are donated.
    return jnp.zeros(batch, dtype)

  return DecodeState(
    cache=cache,
    table=table,
    rows=replace(rows, think_at=think_at),
    lengths=lengths,
    block=unpicked(decoder, batch, decoder.block, 0),
    phase=zeros(),
    turn=zeros(),
    masked=zeros(),
    thought=zeros(bool),
    count=zeros(),
    nfe=zeros(),
    status=jnp.where(lengths > 0, RUNNING, FULL).astype(jnp.int32),
  )
