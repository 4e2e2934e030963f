"""One prompt, pass by pass: its text as it becomes certain, and its states."""

from collections.abc import Iterator, Sequence
from typing import Any

from nemodiff_jax.api import (
  DecodeOutput,
  Model,
  check_batch,
  make_output,
  prepare,
  split_settings,
)
from nemodiff_jax.decode.config import DecodeConfig, RowSettings
from nemodiff_jax.decode.generate import Step, stream_ids
from nemodiff_jax.errors import UserError
from nemodiff_jax.prompts import Prompt, finish_row


def stream(
  model: Model, prompt: Prompt, *, mode: str = "ar", **settings: Any
) -> Iterator[str | DecodeOutput]:
  """Yields the text of one prompt as it becomes certain, then the output.

  The pieces add up to the output's text, which is that of `generate`.

  Args:
    model: from `load`.
    prompt: text, token ids, or messages.
    mode: decoding mode.
    **settings: as for `generate`.

  Raises:
    UserError: as for `generate`; or the checkpoint has no tokenizer.
  """
  row, config = split_settings(model, mode, settings)
  row = finish_row(model.tokenizer, row)
  ids = prepare(model, prompt, row)
  for item in watch(model, config, ids, row):
    if isinstance(item, (str, DecodeOutput)):
      yield item


def watch(
  model: Model,
  config: DecodeConfig,
  prompt: Sequence[int],
  row: RowSettings,
  *,
  traced: bool = False,
) -> Iterator[Step | str | DecodeOutput]:
  """Every step of one checked prompt, new text after it, and the output.

  Args:
    model: from `load`; it needs a tokenizer.
    config: how to decode.
    prompt: checked ids.
    row: settings, from `prompts.finish_row`.
    traced: keep what each pass proposed.
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
    traced=traced,
  ):
    text = step.results()[0].text or ""
    yield step
    if text != shown:
      yield text[len(shown) :]
      shown = text
  if step is not None:
    done = step.results()[0]
    yield make_output(model.tokenizer, config.mode, len(prompt), done)
