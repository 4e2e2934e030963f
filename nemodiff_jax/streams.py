"""One prompt: its text as it becomes certain, or every pass over it."""

from collections.abc import Iterator, Sequence
from typing import Unpack

from nemodiff_jax.api import (
  Common,
  DecodeOutput,
  Model,
  check_batch,
  make_output,
  prepare,
  split_settings,
)
from nemodiff_jax.decode.config import DecodeConfig, RowSettings
from nemodiff_jax.decode.generate import Step, stream_ids
from nemodiff_jax.engines import open_engine
from nemodiff_jax.errors import UserError
from nemodiff_jax.prompts import Prompt, finish_row


def stream(
  model: Model,
  prompt: Prompt,
  *,
  mode: str | None = None,
  **settings: Unpack[Common],
) -> Iterator[str | DecodeOutput]:
  """Yields the text of one prompt as it becomes certain, then the output.

  The pieces add up to the output's text, which is that of `generate`.

  Args:
    model: from `load`.
    prompt: text, token ids, or messages.
    mode: decoding mode; None: as for `generate`.
    **settings: as for `generate`.

  Raises:
    UserError: as for `generate`; or the checkpoint has no tokenizer.
  """
  row, config = split_settings(model, mode, settings)
  row = finish_row(model.tokenizer, row)
  ids = prepare(model, prompt, row)
  yield from pieces(model, config, ids, row)


def pieces(
  model: Model, config: DecodeConfig, prompt: Sequence[int], row: RowSettings
) -> Iterator[str | DecodeOutput]:
  """As `stream`, for one checked prompt; settings from `prompts.finish_row`."""
  if model.tokenizer is None:
    raise UserError("a stream of text needs a tokenizer; there is none.")
  check_batch(model, config, [prompt], [row], 1)
  length = len(prompt) + row.max_new_tokens
  engine = open_engine(model, config, rows=1, max_length=length, settings=[row])
  made = engine.submit(prompt, row, stream=True)
  while not made.ended:
    for event in engine.step():
      if event.text:
        yield event.text
  done = made.output.result()
  yield make_output(model.tokenizer, config.mode, len(prompt), done)


def watch(
  model: Model,
  config: DecodeConfig,
  prompt: Sequence[int],
  row: RowSettings,
) -> Iterator[Step | str | DecodeOutput]:
  """Every step of one checked prompt, new text after it, and the output.

  Args:
    model: from `load`; it needs a tokenizer.
    config: how to decode.
    prompt: checked ids.
    row: settings, from `prompts.finish_row`.
  """
  if model.tokenizer is None:
    raise UserError("a stream of text needs a tokenizer; there is none.")
  check_batch(model, config, [prompt], [row], 1)
  shown, step = "", None
  for step in stream_ids(
    model.module,
    model.weights,
    config,
    [prompt],
    [row],
    attention=model.attention,
    tokenizer=model.tokenizer,
    traced=True,
  ):
    text = step.results()[0].text or ""
    yield step
    if text != shown:
      yield text[len(shown) :]
      shown = text
  if step is not None:
    done = step.results()[0]
    yield make_output(model.tokenizer, config.mode, len(prompt), done)
