"""The settings of a batch as arrays, and the static sizes they ask for."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from nemodiff_jax.decode.config import DecodeConfig, RowSettings
from nemodiff_jax.decode.prefill import bucket, chunk_width
from nemodiff_jax.decode.state import Decoder, Rows
from nemodiff_jax.errors import UserError
from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.nn.model import Transformer

_MIN_CAPACITY = 128
_ALIGN = 8  # Positions of a cache that kernels can serve.
_NO_THRESHOLD = 2.0  # Above any confidence.


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
    block=_block(config),
    sampled=bool(sampled),
    filtered=is_filtered(sampled),
    logprobs=max(_wanted(settings), default=None),
    traced=traced,
    attention=attention,
  )


def is_filtered(settings: Sequence[RowSettings]) -> bool:
  """Whether any row keeps only some of the ids."""
  return any(s.top_k or s.top_p < 1 or s.min_p for s in settings)


def cache_capacity(
  model: ModelConfig, config: DecodeConfig, longest: int, max_new_tokens: int
) -> int:
  """Positions per row: prompt + max_new_tokens + C, room for drafts included.

  The sum is rounded up to an eighth of the next power of two, so that few
  programs compile, but not beyond the model's positions + C.
  """
  block = _block(config)
  size = longest + max_new_tokens + block
  step = max(_MIN_CAPACITY, bucket(size, 1) // 8)
  most = -(-(model.max_positions + block) // _ALIGN) * _ALIGN
  return min(-(-size // step) * step, max(most, size))


def make_rows(
  model: ModelConfig,
  config: DecodeConfig,
  settings: Sequence[RowSettings],
  prompts: Sequence[Sequence[int]] | None = None,
) -> Rows:
  """The settings as arrays; budgets see the thinking that a prompt closed."""
  stops = [
    (() if s.ignore_eos else model.eos_ids) + tuple(s.stop_token_ids)
    for s in settings
  ]
  width = bucket(max(map(len, stops), default=1), 4)
  stop_ids: Any = np.full((len(stops), width), -1, np.int32)
  for row, ids in enumerate(stops):
    stop_ids[row, : len(ids)] = ids
  threshold = _NO_THRESHOLD if config.threshold is None else config.threshold
  behind = prompts or [()] * len(settings)
  budgets = [_budget(s, p) for s, p in zip(settings, behind, strict=True)]

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
    think_at=column((at for at, _ in budgets), np.int32),
    think_id=column((token for _, token in budgets), np.int32),
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


def _block(config: DecodeConfig) -> int:
  """C, the tokens of a block."""
  return 1 if config.mode == "ar" else config.block_length


def _budget(row: RowSettings, prompt: Sequence[int]) -> tuple[int, int]:
  """(tokens before thinking has to end, the token that ends it), or -1s.

  No budget where the prompt has closed thinking and not opened it again.
  A budget that no output can reach (max_new_tokens) is none.
  """
  end, most = row.end_think_token_id, row.max_thinking_tokens
  if most is None or most >= row.max_new_tokens:
    return -1, -1
  if end is None:
    raise UserError(
      "max_thinking_tokens needs end_think_token_id, the token that ends"
      " thinking."
    )
  for token in reversed(prompt):
    if token == row.start_think_token_id:
      break
    if token == end:
      return -1, -1
  return most, end
