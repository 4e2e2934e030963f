"""The Python API: load a checkpoint, generate from prompts."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack

import numpy as np

from nemodiff_jax.batch import (
  BATCH_SIZE,
  DecodeOutput,
  generate_rows,
  make_output,
  rows_as_done,
)
from nemodiff_jax.decode.config import (
  ROW_FIELDS,
  RUN_FIELDS,
  DecodeConfig,
  RowSettings,
  check_prompt,
  decode_config,
)
from nemodiff_jax.errors import UserError, nearest
from nemodiff_jax.model import (
  DTYPES,
  Model,
  check_attention,
  check_batch,
  default_dtype,
  load,
  load_model,
)
from nemodiff_jax.prompts import Prompt, encode_prompt, finish_row

__all__ = [
  "BATCH_SIZE",
  "DTYPES",
  "DecodeOutput",
  "Model",
  "check_attention",
  "check_batch",
  "default_dtype",
  "generate",
  "generate_iter",
  "generate_rows",
  "load",
  "load_model",
  "make_output",
  "prepare",
  "rows_as_done",
  "split_settings",
]


class Common(TypedDict, total=False):
  """Settings of a call: block_length, and the fields of `RowSettings`."""

  block_length: int | str | None
  max_new_tokens: int
  temperature: float
  top_k: int
  top_p: float
  min_p: float
  seed: int
  stop_token_ids: Sequence[int]
  ignore_eos: bool
  stop: str | Sequence[str]
  logprobs: int | None
  max_thinking_tokens: int | None
  end_think_token_id: int | None
  start_think_token_id: int | None
  threshold: float | Literal["run"] | None
  steps_per_block: int | None
  draft_threshold: float | None
  following: Sequence[int]


Settings = Sequence[Mapping[str, Any] | RowSettings]
_CALL_FIELDS = ("block_length", *ROW_FIELDS)


def generate(
  model: Model,
  prompts: Prompt | Sequence[Prompt],
  settings: Settings | None = None,
  *,
  mode: str | None = None,
  batch_size: int = BATCH_SIZE,
  **common: Unpack[Common],
) -> list[DecodeOutput]:
  """Decodes prompts, `batch_size` at a time.

  Args:
    model: from `load`.
    prompts: texts, lists of token ids or lists of messages; or one of them.
      A list of messages is one conversation, a list of texts a batch.
    settings: one per prompt: a `RowSettings`, or its fields that differ from
      the common ones. None: all prompts have the common ones.
    mode: 'ar', 'diffusion', 'linear_spec' or 'quadratic_spec'; None:
      linear_spec with block_length 'auto', or ar where the checkpoint has no
      mask token.
    batch_size: rows decoded together; no effect on the results.
    **common: block_length, threshold, steps_per_block, draft_threshold (see
      `decode.config.decode_config`) and the fields of
      `decode.config.RowSettings`.

  Returns:
    One output per prompt, in order.

  Raises:
    UserError: a setting or a prompt that cannot be served.
  """
  config, ids, rows = _asked(model, prompts, settings, mode, common)
  return list(generate_rows(model, config, ids, rows, batch_size))


def generate_iter(
  model: Model,
  prompts: Prompt | Sequence[Prompt],
  settings: Settings | None = None,
  *,
  mode: str | None = None,
  batch_size: int = BATCH_SIZE,
  **common: Unpack[Common],
) -> Iterator[tuple[int, DecodeOutput]]:
  """Like `generate`, but yields (index of the prompt, output) as they are done.

  All prompts are checked before the first is decoded.
  """
  config, ids, rows = _asked(model, prompts, settings, mode, common)
  return rows_as_done(model, config, ids, rows, batch_size)


def _asked(
  model: Model,
  prompts: Prompt | Sequence[Prompt],
  settings: Settings | None,
  mode: str | None,
  common: Mapping[str, object],
) -> tuple[DecodeConfig, list[list[int]], list[RowSettings]]:
  """What a call asks for, checked: config, ids and settings of each prompt."""
  row, config = split_settings(model, mode, common)
  many: Any = prompts
  if isinstance(many, Mapping):
    raise UserError(
      "a message should be in a list of messages: [{'role': ..., 'content':"
      " ...}]."
    )
  if hasattr(many, "ndim"):  # An array of ids, of one row or of many.
    many = np.asarray(many).tolist()
  if isinstance(many, str) or (
    len(many) and isinstance(many[0], (int, np.integer, dict))
  ):
    many = [many]
  if settings is None:
    rows = [row] * len(many)
  elif len(settings) != len(many):
    raise UserError(
      f"settings should be one per prompt, got {len(settings)} for"
      f" {len(many)} prompts."
    )
  else:
    rows = [_own(row, s) for s in settings]
  rows = [finish_row(model.tokenizer, r) for r in rows]
  pairs = zip(many, rows, strict=True)
  return config, [prepare(model, p, r) for p, r in pairs], rows


def _own(common: RowSettings, own: Mapping[str, Any] | RowSettings):
  if isinstance(own, RowSettings):
    return own
  for name in RUN_FIELDS:
    if name in own:
      raise UserError(
        f"{name!r} is one for all prompts of a call: give {name}=, not in"
        " settings.",
        "unknown_field",
      )
  _check_names(own, ROW_FIELDS, " of a prompt")
  return dataclasses.replace(common, **own)


def _check_names(given: Any, known: Sequence[str], where: str) -> None:
  for name in given:
    if name not in known:
      raise UserError(
        f"unknown setting {name!r}{where}{nearest(name, known, 'setting')};"
        f" known are {', '.join(known)}.",
        "unknown_field",
      )


def split_settings(
  model: Model, mode: str | None, settings: Mapping[str, object]
) -> tuple[RowSettings, DecodeConfig]:
  """Settings of the row, and of the run, from one set of names.

  Raises:
    UserError: an unknown name, a value out of range, or no loaded model.
  """
  if not isinstance(model, Model):
    raise UserError(f"model should come from load(), got {model!r:.60}.")
  _check_names(settings, _CALL_FIELDS, "")
  own: dict[str, Any] = dict(settings)
  block = own.pop("block_length", None)
  config = decode_config(model.config, mode, block_length=block)
  return RowSettings(**own), config


def prepare(model: Model, prompt: Prompt, row: RowSettings) -> list[int]:
  """Checked ids of a prompt.

  Raises:
    UserError: it cannot be served.
  """
  ids = encode_prompt(model.tokenizer, model.template, prompt)
  return check_prompt(ids, row, model.config)
