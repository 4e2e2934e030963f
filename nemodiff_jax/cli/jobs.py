"""Lines of a prompts file as tasks; no line ends the job that reads it."""

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from nemodiff_jax.cli import openai_lines
from nemodiff_jax.cli.openai_calls import Calls
from nemodiff_jax.decode.config import (
  ROW_FIELDS,
  RUN_FIELDS,
  DecodeConfig,
  RowSettings,
  check_prompt,
)
from nemodiff_jax.errors import UserError, nearest
from nemodiff_jax.io.checkpoint import Checkpoint
from nemodiff_jax.io.jsonl import Line, read_lines
from nemodiff_jax.prompts import encode_prompt, finish_row
from nemodiff_jax.text.chat import check_messages

PROMPTS = ("prompt", "prompt_ids", "messages")
FIELDS = ("id", *PROMPTS, "enable_thinking", *ROW_FIELDS)
Id = str | int


@dataclasses.dataclass(frozen=True)
class Task:
  """A line of our own form that can be served.

  Attributes:
    line: its number.
    id: its id; else the number.
    prompt: checked ids.
    row: its settings.
  """

  line: int
  id: Id
  prompt: list[int]
  row: RowSettings

  @property
  def sizes(self) -> tuple[int, int]:
    """Tokens of its prompt, and of its output at most."""
    return len(self.prompt), self.row.max_new_tokens


@dataclasses.dataclass(frozen=True)
class BatchTask:
  """A line of OpenAI's form that can be served.

  Attributes:
    line: its number.
    id: its custom_id.
    request: what it asks for; read again when its turn comes.
    sizes: tokens of its longest prompt, and of an output at most.
  """

  line: int
  id: Id
  request: openai_lines.Request
  sizes: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Refused:
  """A line that cannot be served, and why; `batch`: it has OpenAI's form."""

  line: int
  id: Id | None
  error: UserError
  batch: bool = False


Item = Task | BatchTask | Refused


@dataclasses.dataclass(frozen=True)
class Reader:
  """Turns lines of a prompts file into tasks.

  Attributes:
    checkpoint: whose config, tokenizer and template serve the lines.
    config: how lines are decoded that say nothing else.
    row: settings of lines that set none.
    max_length: limit on positions, if one is set.
    chat: take `prompt` as a message of the user.
    enable_thinking: for templates, of lines that do not say.
  """

  checkpoint: Checkpoint
  config: DecodeConfig
  row: RowSettings
  max_length: int | None = None
  chat: bool = False
  enable_thinking: bool | None = None

  def read(self, path: str) -> Iterator[Item]:
    """Yields every line that is not blank, in order; '-': standard input.

    Raises:
      UserError: the file cannot be read, or is compressed.
    """
    seen: dict[Id, int] = {}
    try:
      with _open(path) as file:
        for line in read_lines(file):
          yield self.item(line, seen)
    except OSError as e:
      raise UserError(f"prompts_file {path!r} cannot be read: {e}.") from e
    except UserError as e:
      raise UserError(f"prompts_file {path!r}: {e}") from e

  def item(self, line: Line, seen: dict[Id, int]) -> Item:
    """A line as a task, if it is one; keeps in `seen` where each id was."""
    given, name, unread = line.value, None, line.error
    if unread is not None:
      unread = UserError(f"line {line.number}: {unread}", unread.kind)
    if unread is not None and not given:
      return Refused(line.number, None, unread)
    batch = openai_lines.is_request(given)
    try:
      name = line_id(line)
      if unread is not None:
        raise unread
      if name in seen:
        raise UserError(
          f"line {line.number}: id {name!r} is that of line {seen[name]}"
          " already.",
          "repeated_id",
        )
      seen[name] = line.number
      if batch:
        return self._request(given, line.number, name)
      return self.task(given, line.number, name)
    except UserError as e:
      return Refused(line.number, name, e, batch)
    except Exception as e:  # Whatever it is, it is this line's alone.
      error = UserError(f"{type(e).__name__}: {e}", "internal")
      return Refused(line.number, name, error, batch)

  @functools.cached_property
  def calls(self) -> Calls:
    """What reads and answers the lines of OpenAI's form."""
    return Calls(
      self.checkpoint,
      self.config,
      self.row,
      self.max_length,
      self.enable_thinking,
      self.checkpoint.folder.name,
    )

  def _request(self, given: dict[str, Any], line: int, name: Id) -> BatchTask:
    request = openai_lines.read_request(given, line, name)
    rows = self.calls.read(request).jobs
    sizes = [(len(job.prompt), job.row.max_new_tokens) for job in rows]
    return BatchTask(line, name, request, max(sizes, key=sum))

  def task(self, given: dict[str, Any], line: int, name: Id) -> Task:
    """One task of its fields.

    Raises:
      UserError: a field that is unknown or cannot be served.
    """
    for field in given:
      if field in RUN_FIELDS:
        raise UserError(
          f"{field!r} is one for the whole job: give --{field}, not in a line.",
          "unknown_field",
        )
      if field not in FIELDS:
        raise UserError(
          f"unknown field {field!r}{nearest(field, FIELDS, 'field')}; known are"
          f" {', '.join(FIELDS)}.",
          "unknown_field",
        )
    if sum(name in given for name in PROMPTS) != 1:
      found = [name for name in PROMPTS if name in given] or "none"
      raise UserError(
        f"expected one of {', '.join(PROMPTS)}, found {found}.", "no_prompt"
      )
    own = {k: v for k, v in given.items() if k in ROW_FIELDS}
    row = dataclasses.replace(self.row, **own)
    row = finish_row(self.checkpoint.tokenizer, row)
    ids = self._ids(given)
    config = self.checkpoint.config
    return Task(
      line, name, check_prompt(ids, row, config, self.max_length), row
    )

  def _ids(self, given: dict[str, Any]) -> Sequence[int]:
    prompt = given.get("prompt", "")
    if not isinstance(prompt, str):
      raise UserError(f"prompt should be a text, got {prompt!r}.")
    if not isinstance(given.get("prompt_ids", []), list):
      raise UserError(
        f"prompt_ids should be a list, got {given['prompt_ids']!r}.", "bad_ids"
      )
    source = next(given[name] for name in PROMPTS if name in given)
    if "messages" in given:
      check_messages(source)
    elif self.chat and "prompt" in given and prompt:
      source = [{"role": "user", "content": prompt}]
    think = given.get("enable_thinking", self.enable_thinking)
    if think is not None and not isinstance(think, bool):
      raise UserError(
        f"enable_thinking should be true or false, got {think!r}."
      )
    variables = {} if think is None else {"enable_thinking": think}
    tokenizer, template = self.checkpoint.tokenizer, self.checkpoint.template
    return encode_prompt(tokenizer, template, source, **variables)


def line_id(line: Line) -> Id:
  """What a line is called: its id, its custom_id, or its number.

  Raises:
    UserError: an id of another type.
  """
  if openai_lines.is_request(line.value):
    return _custom_id(line.value)
  return _id(line.value, line.number)


def _open(path: str) -> contextlib.AbstractContextManager[BinaryIO]:
  if path == "-":
    return contextlib.nullcontext(sys.stdin.buffer)
  return open(os.path.expanduser(path), "rb")


def _id(given: dict[str, Any], line: int) -> Id:
  name = given.get("id")
  if name is None:
    return line
  if isinstance(name, bool) or not isinstance(name, (str, int)):
    raise UserError(
      f"line {line}: id should be a text or a whole number, got {name!r}.",
      "bad_id",
    )
  return name


def _custom_id(given: dict[str, Any]) -> str:
  name = given.get("custom_id")
  if not isinstance(name, str):
    raise UserError(f"custom_id should be a text, got {name!r}.", "bad_id")
  return name
