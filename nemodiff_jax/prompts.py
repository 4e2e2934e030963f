"""Prompts in any form, and what a row needs of the tokenizer."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from nemodiff_jax.decode.config import RowSettings
from nemodiff_jax.errors import UserError
from nemodiff_jax.text.chat import ChatTemplate, encode_chat
from nemodiff_jax.text.tokenizer import Tokenizer

START_THINK, END_THINK = "<think>", "</think>"
Prompt = str | Sequence[int] | Sequence[dict[str, Any]]


def encode_prompt(
  tokenizer: Tokenizer | None,
  template: ChatTemplate | None,
  prompt: Prompt,
  **variables: Any,
) -> Sequence[int]:
  """Ids of a prompt, for `check_prompt`.

  Args:
    tokenizer: of the checkpoint.
    template: of the checkpoint.
    prompt: text; messages (dicts); or ids, which are used as they are.
    **variables: for the template.

  Raises:
    UserError: an empty text, or a text without a tokenizer.
  """
  if not isinstance(prompt, str):
    if len(prompt := _sized(prompt)) and isinstance(prompt[0], dict):
      return encode_chat(template, tokenizer, prompt, **variables)
    return prompt
  if not prompt:
    raise UserError(
      "the prompt is empty; it should hold at least one character.",
      "empty_prompt",
    )
  if tokenizer is None:
    raise UserError(
      "this checkpoint has no tokenizer (tokenizer.json, tekken.json or"
      " tokenizer.model), so prompts should be token ids."
    )
  return tokenizer.encode(prompt)


def finish_row(tokenizer: Tokenizer | None, row: RowSettings) -> RowSettings:
  """Fills in what a row needs of the tokenizer.

  That is the tokens of thinking of a row with a budget, and the ids of stop
  strings that are special tokens: those never show in a text.

  Raises:
    UserError: the tokenizer has none; or stop strings without a tokenizer.
  """
  if row.stop and tokenizer is None:
    raise UserError("stop strings need a tokenizer; use stop_token_ids.")
  if row.stop and tokenizer is not None:
    ids = {s: _special_id(tokenizer, s) for s in row.stop}
    row = dataclasses.replace(
      row,
      stop=[s for s in row.stop if ids[s] is None],
      stop_token_ids=[
        *row.stop_token_ids, *(i for i in ids.values() if i is not None)
      ],
    )  # fmt: skip
  if row.max_thinking_tokens is None:
    return row
  end, start = row.end_think_token_id, row.start_think_token_id
  if tokenizer is not None:
    end = tokenizer.id_of(END_THINK) if end is None else end
    start = tokenizer.id_of(START_THINK) if start is None else start
  if end is None:
    raise UserError(
      f"max_thinking_tokens needs the token {END_THINK!r}, which the tokenizer"
      " lacks; give end_think_token_id."
    )
  return dataclasses.replace(
    row, end_think_token_id=end, start_think_token_id=start
  )


def _special_id(tokenizer: Tokenizer, text: str) -> int | None:
  """Id of the special token of this name, None where it is text."""
  token = tokenizer.id_of(text)
  # Twice: a decoder may take the space off the first token.
  shown = token is None or tokenizer.decode([token, token])
  return None if shown else token


def _sized(prompt: Any) -> Any:
  if not hasattr(prompt, "__len__"):
    raise UserError(
      f"prompt_ids should be a list of token ids, got {prompt!r}.", "bad_ids"
    )
  return prompt
