"""Batches of prompts in, one result per prompt out."""

import dataclasses
from collections.abc import Iterator, Sequence

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
  Rows,
  Weights,
)
from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.nn.model import Transformer

_MIN_CAPACITY = 128
_NO_THRESHOLD = 2.0  # Above any confidence.


@dataclasses.dataclass(frozen=True)
class DecodedIds:
  """What came of one prompt.

  Attributes:
    token_ids: the generated tokens, an ending EOS or stop id included.
    finish_reason: 'stop' or 'length'.
    nfe: forward passes, counted as the mode's page in docs/decoding.md says.
    accepted: tokens accepted per cycle, before the output is cut
      (speculative modes; None otherwise).
  """

  token_ids: list[int]
  finish_reason: str
  nfe: int
  accepted: list[int] | None


def decode_ids(
  module: Transformer,
  weights: Weights,
  config: DecodeConfig,
  prompts: Sequence[Sequence[int]],
  settings: Sequence[RowSettings],
  *,
  batch: int | None = None,
  attention: str | None = None,
) -> list[DecodedIds]:
  """Decodes one batch in the compiled loop.

  Args:
    module: the model.
    weights: parameters, and the drafter if linear_spec is to use it.
    config: how to decode.
    prompts: token ids, each of at least one token.
    settings: of each row.
    batch: rows to pad to, so that batches share a program; default: none.
    attention: implementation of range attention; None: chosen.
  """
  decoder, weights, state = start(
    module, weights, config, prompts, settings, batch, attention
  )
  with _exact(module):
    state = driver.run(decoder, weights, state)
  return _results(config, state)[: len(prompts)]


def stream_ids(
  module: Transformer,
  weights: Weights,
  config: DecodeConfig,
  prompts: Sequence[Sequence[int]],
  settings: Sequence[RowSettings],
) -> Iterator[list[DecodedIds]]:
  """Like `decode_ids`, but yields what is known before and after each pass.

  The last item equals the result of `decode_ids`; a row that has not ended
  shows 'length' until it has.
  """
  decoder, weights, begun = start(module, weights, config, prompts, settings)
  with _exact(module):
    for state in driver.passes(decoder, weights, begun):
      yield _results(config, state)


def start(
  module: Transformer,
  weights: Weights,
  config: DecodeConfig,
  prompts: Sequence[Sequence[int]],
  settings: Sequence[RowSettings],
  batch: int | None = None,
  attention: str | None = None,
) -> tuple[Decoder, Weights, DecodeState]:
  """Prefills a batch; what is returned goes to `driver`."""
  sampled = [s for s in settings if s.temperature > 0]
  decoder = Decoder(
    module=module,
    mode=config.mode,
    block=1 if config.mode == "ar" else config.block_length,
    sampled=bool(sampled),
    filtered=any(s.top_k or s.top_p < 1 or s.min_p for s in sampled),
    attention=attention,
  )
  if config.mode != "linear_spec":
    weights = dataclasses.replace(weights, lora=None)
  capacity = cache_capacity(
    config,
    max(len(p) for p in prompts),
    max(s.max_new_tokens for s in settings),
  )
  padding = max(0, (batch or 0) - len(prompts))
  rows = make_rows(module.config, config, [*settings, *[settings[0]] * padding])
  with _exact(module):
    padded = [*prompts, *[()] * padding]
    state = prefill(decoder, weights, padded, rows, capacity)
  return decoder, weights, state


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
  stop_ids = np.full((len(stops), width), -1, np.int32)
  for row, ids in enumerate(stops):
    stop_ids[row, : len(ids)] = ids
  threshold = _NO_THRESHOLD if config.threshold is None else config.threshold

  def column(values, dtype=np.float32):
    return jnp.asarray(np.array(list(values), dtype))

  return Rows(
    max_new=column((s.max_new_tokens for s in settings), np.int32),
    stop_ids=jnp.asarray(stop_ids),
    temperature=column(s.temperature for s in settings),
    top_k=column((min(s.top_k, model.vocab_size) for s in settings), np.int32),
    top_p=column(s.top_p for s in settings),
    min_p=column(s.min_p for s in settings),
    seed=column(
      ((s.seed >> 32, s.seed & 0xFFFFFFFF) for s in settings), np.uint32
    ),
    threshold=column(threshold for _ in settings),
    steps=column(
      (config.steps_per_block or config.block_length for _ in settings),
      np.int32,
    ),
    draft_threshold=column(config.draft_threshold for _ in settings),
  )


def largest_pass(config: DecodeConfig, longest: int) -> tuple[int, int]:
  """(queries, queries whose logits are read) of the widest pass of a row."""
  size = config.block_length
  quadratic = config.mode == "quadratic_spec"
  queries = chunk_width(longest, size if quadratic else 0)
  if config.mode == "ar":
    return queries, 1
  return max(queries, size * (size + 1) if quadratic else size), size


def _results(config: DecodeConfig, state: DecodeState) -> list[DecodedIds]:
  tokens, count, nfe, status, accepted, cycles = jax.device_get(
    (
      state.tokens,
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
      token_ids=tokens[b, : count[b]].tolist(),
      finish_reason="stop" if status[b] == STOPPED else "length",
      nfe=int(nfe[b]),
      accepted=accepted[b, : cycles[b]].tolist() if speculative else None,
    )
    for b in range(len(count))
  ]


def _exact(module: Transformer):
  """Float32 stays float32 on GPUs too (no TF32), so that modes agree."""
  full = jnp.dtype(module.dtype) == jnp.float32
  return jax.default_matmul_precision("highest" if full else "default")
