"""The settings of a batch as arrays, and the static sizes they ask for."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from nemodiff_jax.decode.config import DecodeConfig, RowSettings, row_config
from nemodiff_jax.decode.modes import MODES
from nemodiff_jax.decode.prefill import bucket, chunk_width
from nemodiff_jax.decode.state import Decoder, Rows, Sampling
from nemodiff_jax.errors import UserError
from nemodiff_jax.nn.cache import pages_for
from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.nn.model import Transformer
from pallas_kernels.range_attention import PAGE

_NO_THRESHOLD = 2.0  # Above any confidence.


def make_decoder(
  module: Transformer,
  config: DecodeConfig,
  settings: Sequence[RowSettings],
  attention: str | None = None,
  traced: bool = False,
) -> Decoder:
  """The static part of decoding a batch of these settings."""
  return Decoder(
    module=module,
    mode=MODES[config.mode],
    block=config.slots,
    sampling=asked(settings),
    logprobs=max(_wanted(settings), default=None),
    traced=traced,
    attention=attention,
  )


def asked(settings: Sequence[RowSettings]) -> Sampling:
  """The cheapest Sampling that serves every row."""
  sampled = [s for s in settings if s.temperature > 0]
  if any(s.top_k or s.top_p < 1 or s.min_p for s in sampled):
    return Sampling.FILTERED
  return Sampling.PLAIN if sampled else Sampling.GREEDY


def cache_capacity(
  model: ModelConfig, config: DecodeConfig, longest: int, max_new_tokens: int
) -> int:
  """Positions per row: prompt + max_new_tokens + C, room for drafts included.

  The sum is rounded up to an eighth of the next power of two, so that few
  programs compile, but not beyond the model's positions + C.
  """
  block = config.slots
  size = longest + max_new_tokens + block
  step = max(PAGE, bucket(size, 1) // 8)
  most = pages_for(max(model.max_positions + block, size)) * PAGE
  return min(-(-size // step) * step, most)


def make_rows(
  model: ModelConfig,
  config: DecodeConfig,
  settings: Sequence[RowSettings],
  prompts: Sequence[Sequence[int]] | None = None,
  stop_ids: int = 4,
) -> Rows:
  """The settings as arrays, on the host.

  Args:
    model: the architecture.
    config: of the run.
    settings: of each row.
    prompts: of each row; a budget sees the thinking that its prompt closed.
    stop_ids: columns for the stop ids, at least.
  """
  stops = [
    (() if s.ignore_eos else model.eos_ids) + tuple(s.stop_token_ids)
    for s in settings
  ]
  width = bucket(max(map(len, stops), default=1), stop_ids)
  ends: Any = np.full((len(stops), width), -1, np.int32)
  for row, ids in enumerate(stops):
    ends[row, : len(ids)] = ids
  runs = [row_config(config, s) for s in settings]
  behind = prompts or [()] * len(settings)
  budgets = [_budget(s, p) for s, p in zip(settings, behind, strict=True)]

  def column(values, dtype=np.float32) -> Any:
    return np.array(list(values), dtype)

  rows = Rows(
    max_new=column((s.max_new_tokens for s in settings), np.int32),
    stop_ids=ends,
    temperature=column(s.temperature for s in settings),
    top_k=column((min(s.top_k, model.vocab_size) for s in settings), np.int32),
    top_p=column(s.top_p for s in settings),
    min_p=column(s.min_p for s in settings),
    seed=column(
      ((s.seed >> 32, s.seed & 0xFFFFFFFF) for s in settings), np.uint32
    ),
    think_at=column((at for at, _ in budgets), np.int32),
    think_id=column((token for _, token in budgets), np.int32),
    threshold=column(
      _NO_THRESHOLD if c.threshold is None else c.threshold for c in runs
    ),
    steps=column((_steps(c) for c in runs), np.int32),
    draft_threshold=column(c.draft_threshold for c in runs),
    following=_following(config, settings),
  )
  return jax.device_put(rows)  # All at once: one by one takes longer.


def largest_pass(config: DecodeConfig, longest: int) -> tuple[int, int]:
  """(queries, queries whose logits are read) of the widest pass of a row."""
  mode, size = MODES[config.mode], config.slots
  queries = chunk_width(longest, mode.masks(size))
  return max(queries, mode.queries(size)), size


def _following(config: DecodeConfig, settings: Sequence[RowSettings]) -> Any:
  """What each row knows to stand behind its output, as far as a block goes."""
  size = config.slots if "following" in MODES[config.mode].settings else 0
  found = np.full((len(settings), size), -1, np.int32)
  for row, given in zip(found, settings, strict=True):
    ids = given.following[:size]
    row[: len(ids)] = ids
  return found


def _steps(config: DecodeConfig) -> int:
  """Denoising passes per block; more than C + 1 are never needed."""
  most = config.block_length + 1
  return min(config.steps_per_block or config.block_length, most)


def _wanted(settings: Sequence[RowSettings]) -> list[int]:
  return [s.logprobs for s in settings if s.logprobs is not None]


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
