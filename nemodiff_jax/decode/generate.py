"""Batches of prompts in, one result per prompt out."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nemodiff_jax.decode import driver
from nemodiff_jax.decode.config import DecodeConfig, RowSettings
from nemodiff_jax.decode.prefill import bucket, chunk_width, prefill
from nemodiff_jax.decode.state import (
  STOPPED,
  Decoder,
  DecodeState,
  Picked,
  Rows,
  Weights,
)
from nemodiff_jax.errors import UserError
from nemodiff_jax.nn.cache import KVCache
from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.nn.model import Transformer
from nemodiff_jax.text.stream import TextStream
from nemodiff_jax.text.tokenizer import Tokenizer

_MIN_CAPACITY = 128
_NO_THRESHOLD = 2.0  # Above any confidence.


@dataclasses.dataclass(frozen=True)
class Logprobs:
  """Log-probabilities of one row's tokens, of the distribution sampled from.

  Attributes:
    token: [T] of each token.
    top_ids: [T][<= k] the likeliest tokens in its place.
    top: [T][<= k] of these.
  """

  token: list[float]
  top_ids: list[list[int]]
  top: list[list[float]]


@dataclasses.dataclass(frozen=True)
class DecodedIds:
  """What came of one prompt.

  Attributes:
    token_ids: the generated tokens, an ending EOS or stop id included.
    finish_reason: 'stop' or 'length'.
    nfe: forward passes, counted as the mode's page in docs/decoding.md says.
    accepted: tokens accepted per cycle, before the output is cut
      (speculative modes; None otherwise).
    logprobs: None unless asked for.
    text: what its text stream made of it; None without one.
  """

  token_ids: list[int]
  finish_reason: str
  nfe: int
  accepted: list[int] | None
  logprobs: Logprobs | None = None
  text: str | None = None


def decode_ids(
  module: Transformer,
  weights: Weights,
  config: DecodeConfig,
  prompts: Sequence[Sequence[int]],
  settings: Sequence[RowSettings],
  *,
  batch: int | None = None,
  attention: str | None = None,
  tokenizer: Tokenizer | None = None,
) -> list[DecodedIds]:
  """Decodes one batch.

  In the compiled loop; pass by pass if a row has stop strings, since text
  cannot be matched on the device.

  Args:
    module: the model.
    weights: parameters, and the drafter if linear_spec is to use it.
    config: how to decode.
    prompts: token ids, each of at least one token.
    settings: of each row.
    batch: rows to pad to, so that batches share a program; default: none.
    attention: implementation of range attention; None: chosen.
    tokenizer: for stop strings.

  Raises:
    UserError: stop strings without a tokenizer.
  """
  if any(s.stop for s in settings):
    *_, last = stream_ids(
      module, weights, config, prompts, settings,
      batch=batch, attention=attention, tokenizer=tokenizer,
    )  # fmt: skip
    return last.results(len(prompts))
  decoder, weights, state = start(
    module, weights, config, prompts, settings, batch, attention
  )
  state = driver.run(decoder, weights, state)
  return _results(config, state, settings)[: len(prompts)]


@dataclasses.dataclass
class Kept:
  """The cache of one row between two replies of a conversation.

  Attributes:
    cache: None before the first reply.
    ids: the tokens whose keys and values it holds.
    reused: of these, how many the last prompt began with.
  """

  cache: KVCache | None = None
  ids: list[int] = dataclasses.field(default_factory=list)
  reused: int = 0

  def reuse(
    self, prompt: Sequence[int], capacity: int
  ) -> tuple[KVCache | None, int]:
    """Gives the cache away: (cache, leading tokens of the prompt it holds).

    At least the last token of the prompt is always read again.
    """
    cache, self.cache = self.cache, None
    if cache is None or cache.k[0].is_deleted():  # Lost inside a pass.
      self.reused = 0
      return None, 0
    if (more := capacity - cache.capacity) > 0:
      room = ((0, 0), (0, more), (0, 0), (0, 0))
      cache = jax.tree.map(lambda x: jnp.pad(x, room), cache)
    same = 0
    for a, b in zip(self.ids, prompt[:-1], strict=False):
      if a != b:
        break
      same += 1
    self.reused = same
    return cache, same

  def keep(self, prompt: Sequence[int], moment: "Moment") -> None:
    """Takes back the cache of a reply, ended or broken off."""
    state = moment.state
    count, length = int(state.count[0]), int(state.lengths[0])
    tokens = jax.device_get(state.output.token)[0, :count].tolist()
    self.ids = [*prompt, *tokens][:length]
    self.cache = state.cache


@dataclasses.dataclass(frozen=True)
class Moment:
  """A batch between two passes.

  Attributes:
    config: how it decodes.
    settings: of each row.
    state: donated to the next pass; read it before asking for the next.
    texts: the text stream of each row; None where there is no tokenizer.
  """

  config: DecodeConfig
  settings: Sequence[RowSettings]
  state: DecodeState
  texts: Sequence[TextStream | None]

  def results(self, rows: int | None = None) -> list[DecodedIds]:
    """What is known; a row that has not ended shows 'length'."""
    done = _results(self.config, self.state, self.settings)[:rows]
    return [
      r if text is None else dataclasses.replace(r, text=text.text)
      for r, text in zip(done, self.texts, strict=False)
    ]


def stream_ids(
  module: Transformer,
  weights: Weights,
  config: DecodeConfig,
  prompts: Sequence[Sequence[int]],
  settings: Sequence[RowSettings],
  *,
  batch: int | None = None,
  attention: str | None = None,
  tokenizer: Tokenizer | None = None,
  traced: bool = False,
  kept: Kept | None = None,
) -> Iterator[Moment]:
  """Like `decode_ids`, but yields before the first and after every pass.

  The last moment's results are those of `decode_ids`.
  """
  if tokenizer is None and any(s.stop for s in settings):
    raise UserError("stop strings need a tokenizer; use stop_token_ids.")
  decoder, weights, begun = start(
    module, weights, config, prompts, settings, batch, attention, traced, kept
  )
  rows = begun.lengths.shape[0]
  texts: list[TextStream | None] = [None] * rows
  if tokenizer is not None:
    for row, s in enumerate(settings):
      texts[row] = TextStream(tokenizer, s.stop)
  for state in driver.passes(decoder, weights, begun, texts):
    yield Moment(config, settings, state, texts)


def start(
  module: Transformer,
  weights: Weights,
  config: DecodeConfig,
  prompts: Sequence[Sequence[int]],
  settings: Sequence[RowSettings],
  batch: int | None = None,
  attention: str | None = None,
  traced: bool = False,
  kept: Kept | None = None,
) -> tuple[Decoder, Weights, DecodeState]:
  """Prefills a batch; what is returned goes to `driver`."""
  decoder = make_decoder(module, config, settings, attention, traced)
  if config.mode != "linear_spec":
    weights = dataclasses.replace(weights, lora=None)
  most = max(s.max_new_tokens for s in settings)
  capacity = cache_capacity(config, max(map(len, prompts)), most)
  cache, cached = (
    (None, 0) if kept is None else kept.reuse(prompts[0], capacity)
  )
  if cache is not None:
    capacity = cache.capacity
  padding = max(0, (batch or 0) - len(prompts))
  rows = make_rows(module.config, config, [*settings, *[settings[0]] * padding])
  padded = [*prompts, *[()] * padding]
  state = prefill(decoder, weights, padded, rows, capacity, cache, cached)
  return decoder, weights, state


def make_decoder(
  module: Transformer,
  config: DecodeConfig,
  settings: Sequence[RowSettings],
  attention: str | None = None,
  traced: bool = False,
) -> Decoder:
  """The static part of decoding a batch of these settings."""
  sampled = [s for s in settings if s.temperature > 0]
  return Decoder(
    module=module,
    mode=config.mode,
    block=1 if config.mode == "ar" else config.block_length,
    sampled=bool(sampled),
    filtered=any(s.top_k or s.top_p < 1 or s.min_p for s in sampled),
    logprobs=max(_wanted(settings), default=None),
    traced=traced,
    attention=attention,
  )


def cache_capacity(
  config: DecodeConfig, longest: int, max_new_tokens: int
) -> int:
  """Positions per row: the prompt's bucket, the output, and room for drafts.

  Rounded up to a quarter of a power of two, so that few programs compile.
  """
  size = bucket(longest, 16) + max_new_tokens + 2 * config.block_length
  step = max(_MIN_CAPACITY, bucket(size, 1) // 8)
  return -(-size // step) * step


def make_rows(
  model: ModelConfig, config: DecodeConfig, settings: Sequence[RowSettings]
) -> Rows:
  """The settings as arrays."""
  stops = [
    (() if s.ignore_eos else model.eos_ids) + tuple(s.stop_token_ids)
    for s in settings
  ]
  width = bucket(max(map(len, stops), default=1), 4)
  stop_ids: Any = np.full((len(stops), width), -1, np.int32)
  for row, ids in enumerate(stops):
    stop_ids[row, : len(ids)] = ids
  threshold = _NO_THRESHOLD if config.threshold is None else config.threshold

  def column(values, dtype=np.float32) -> Any:
    return np.array(list(values), dtype)

  rows = Rows(
    max_new=column((s.max_new_tokens for s in settings), np.int32),
    stop_ids=stop_ids,
    temperature=column(s.temperature for s in settings),
    top_k=column((min(s.top_k, model.vocab_size) for s in settings), np.int32),
    top_p=column(s.top_p for s in settings),
    min_p=column(s.min_p for s in settings),
    seed=column(
      ((s.seed >> 32, s.seed & 0xFFFFFFFF) for s in settings), np.uint32
    ),
    think_at=column((_budget(s)[0] for s in settings), np.int32),
    think_id=column((_budget(s)[1] for s in settings), np.int32),
    threshold=column(threshold for _ in settings),
    steps=column(
      (_steps(config) for _ in settings),
      np.int32,
    ),
    draft_threshold=column(config.draft_threshold for _ in settings),
  )
  return jax.device_put(rows)  # All at once: one by one takes longer.


def largest_pass(config: DecodeConfig, longest: int) -> tuple[int, int]:
  """(queries, queries whose logits are read) of the widest pass of a row."""
  size = config.block_length
  quadratic = config.mode == "quadratic_spec"
  queries = chunk_width(longest, size if quadratic else 0)
  if config.mode == "ar":
    return queries, 1
  return max(queries, size * (size + 1) if quadratic else size), size


def _steps(config: DecodeConfig) -> int:
  """Denoising passes per block; more than C + 1 are never needed."""
  most = config.block_length + 1
  return min(config.steps_per_block or config.block_length, most)


def _wanted(settings: Sequence[RowSettings]) -> list[int]:
  return [s.logprobs for s in settings if s.logprobs is not None]


def _budget(row: RowSettings) -> tuple[int, int]:
  """(tokens before thinking has to end, the token that ends it), or -1s."""
  if row.max_thinking_tokens is None or row.end_think_token_id is None:
    return -1, -1
  return row.max_thinking_tokens, row.end_think_token_id


def _results(
  config: DecodeConfig, state: DecodeState, settings: Sequence[RowSettings]
) -> list[DecodedIds]:
  """The output of every row that has settings, in one copy to the host."""
  output, count, nfe, status, accepted, cycles = jax.device_get(
    (
      state.output,
      state.count,
      state.nfe,
      state.status,
      state.accepted,
      state.cycles,
    )
  )
  speculative = config.mode.endswith("_spec")
  return [
    DecodedIds(
      token_ids=output.token[b, : count[b]].tolist(),
      finish_reason="stop" if status[b] == STOPPED else "length",
      nfe=int(nfe[b]),
      accepted=accepted[b, : cycles[b]].tolist() if speculative else None,
      logprobs=_logprobs(output, b, count[b], row.logprobs),
    )
    for b, row in enumerate(settings)
  ]


def _logprobs(
  output: Picked, row: int, count: int, top: int | None
) -> Logprobs | None:
  chosen, ids, values = output.logprob, output.top_ids, output.top_logprobs
  if top is None or chosen is None or ids is None or values is None:
    return None
  ids, values = ids[row, :count, :top], values[row, :count, :top]
  kept = np.isfinite(values)  # What a filter removed has none.
  return Logprobs(
    token=chosen[row, :count].tolist(),
    top_ids=[i[k].tolist() for i, k in zip(ids, kept, strict=True)],
    top=[v[k].tolist() for v, k in zip(values, kept, strict=True)],
  )
