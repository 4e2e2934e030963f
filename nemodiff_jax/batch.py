"""Checked prompts in, outputs out: in the compiled loop, or in an engine."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from nemodiff_jax.decode.config import DecodeConfig, RowSettings
from nemodiff_jax.decode.generate import decode_ids
from nemodiff_jax.decode.results import DecodedIds, Logprobs
from nemodiff_jax.engines import open_engine
from nemodiff_jax.errors import UserError
from nemodiff_jax.model import Model, check_batch
from nemodiff_jax.serve.engine import Engine
from nemodiff_jax.text.tokenizer import Tokenizer

BATCH_SIZE = 8
_AHEAD = 2  # Prompts that wait in the engine, per row of it.


@dataclasses.dataclass(frozen=True)
class DecodeOutput:
  """What came of one prompt.

  Attributes:
    text: without the token that ended the row; None without a tokenizer.
    token_ids: generated tokens, an ending EOS or stop id included.
    finish_reason: 'stop' or 'length'.
    mode: the decoding mode.
    nfe: forward passes, by the mode's counting.
    tokens_per_forward: completion_tokens / nfe; None when nfe is 0.
    prompt_tokens: length of the prompt.
    completion_tokens: len(token_ids).
    accepted: tokens accepted per cycle (speculative modes; None otherwise).
    logprobs: of the tokens and the likeliest ones; None unless asked for.
  """

  text: str | None
  token_ids: list[int]
  finish_reason: str
  mode: str
  nfe: int
  tokens_per_forward: float | None
  prompt_tokens: int
  completion_tokens: int
  accepted: list[int] | None = None
  logprobs: Logprobs | None = None


def generate_rows(
  model: Model,
  config: DecodeConfig,
  prompts: Sequence[Sequence[int]],
  rows: Sequence[RowSettings],
  batch_size: int,
) -> Iterator[DecodeOutput]:
  """Decodes checked prompts with their own settings; yields in their order."""
  held: dict[int, DecodeOutput] = {}
  wanted = 0
  for index, output in rows_as_done(model, config, prompts, rows, batch_size):
    held[index] = output
    while wanted in held:
      yield held.pop(wanted)
      wanted += 1


def rows_as_done(
  model: Model,
  config: DecodeConfig,
  prompts: Sequence[Sequence[int]],
  rows: Sequence[RowSettings],
  batch_size: int,
  lead: int | None = None,
) -> Iterator[tuple[int, DecodeOutput]]:
  """Decodes checked prompts with their own settings, `batch_size` at a time.

  What one batch holds runs in the compiled loop; more, or a width that is
  chosen as it goes, in an engine, where no row waits for the longest.

  Args:
    model: from `load`.
    config: how to decode.
    prompts: checked ids.
    rows: settings of each.
    batch_size: rows at a time.
    lead: prompts that may be decoded before the first that is not done; None:
      any number.

  Yields:
    (index, output) as they are done.

  Raises:
    UserError: a batch does not fit in memory; stop texts without a tokenizer.
  """
  if batch_size < 1:
    raise UserError(f"batch_size should be at least 1, got {batch_size}.")
  if not prompts:
    return
  size = min(batch_size, len(prompts))
  check_batch(model, config, prompts, rows, size)
  if len(prompts) > size or config.widths:
    longest = max(
      len(p) + r.max_new_tokens for p, r in zip(prompts, rows, strict=True)
    )
    engine = open_engine(
      model, config, rows=size, max_length=longest, settings=rows
    )
    yield from by_engine(engine, model, prompts, rows, size, lead)
    return
  decoded = decode_ids(
    model.module,
    model.weights,
    config,
    prompts,
    rows,
    attention=model.attention,
    tokenizer=model.tokenizer,
  )
  for index, (prompt, ids) in enumerate(zip(prompts, decoded, strict=True)):
    yield index, make_output(model.tokenizer, config.mode, len(prompt), ids)


def by_engine(
  engine: Engine,
  model: Model,
  prompts: Sequence[Sequence[int]],
  rows: Sequence[RowSettings],
  size: int,
  lead: int | None = None,
) -> Iterator[tuple[int, DecodeOutput]]:
  """As `rows_as_done`, in an engine that has nothing else to do.

  Few prompts wait in the engine, the others here.
  """
  mode = engine.config.mode
  index: dict[Any, int] = {}
  undone, given = set(range(len(prompts))), 0
  while undone:
    most = len(prompts) if lead is None else min(undone) + lead
    while given < min(most, len(prompts)) and len(index) < size * (1 + _AHEAD):
      index[engine.submit(prompts[given], rows[given])] = given
      given += 1
    for event in engine.step():
      if event.ended:
        done = index.pop(event.generation)
        undone.remove(done)
        ids, length = event.generation.output.result(), len(prompts[done])
        yield done, make_output(model.tokenizer, mode, length, ids)


def make_output(
  tokenizer: Tokenizer | None, mode: str, prompt_tokens: int, ids: DecodedIds
) -> DecodeOutput:
  """Adds text and counts to decoded ids."""
  shown = ids.token_ids[:-1] if ids.finish_reason == "stop" else ids.token_ids
  count = len(ids.token_ids)
  return DecodeOutput(
    text=ids.text
    if ids.text is not None or tokenizer is None
    else tokenizer.decode(shown),
    token_ids=ids.token_ids,
    finish_reason=ids.finish_reason,
    mode=mode,
    nfe=ids.nfe,
    tokens_per_forward=count / ids.nfe if ids.nfe else None,
    prompt_tokens=prompt_tokens,
    completion_tokens=count,
    accepted=ids.accepted,
    logprobs=ids.logprobs,
  )
