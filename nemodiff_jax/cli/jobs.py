"""JSONL jobs: prompts in, results out, and going on where a job stopped."""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from nemodiff_jax.api import DecodeOutput
from nemodiff_jax.decode.config import ROW_FIELDS, RowSettings, check_prompt
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import Checkpoint
from nemodiff_jax.prompts import encode_prompt, finish_row
from nemodiff_jax.text.chat import check_messages

PROMPTS = ("prompt", "prompt_ids", "messages")
FIELDS = ("id", *PROMPTS, "enable_thinking", *ROW_FIELDS)
Id = str | int


@dataclasses.dataclass(frozen=True)
class Task:
  """A line that can be served."""

  line: int
  id: Id
  prompt: list[int]
  row: RowSettings


@dataclasses.dataclass(frozen=True)
class Refused:
  """A line that cannot be served, and why."""

  line: int
  id: Id | None
  error: UserError


@dataclasses.dataclass(frozen=True)
class Reader:
  """Turns lines of a prompts file into tasks.

  Attributes:
    checkpoint: whose config, tokenizer and template serve the lines.
    row: settings of lines that set none.
    max_length: limit on positions, if one is set.
    chat: take `prompt` as a message of the user.
    enable_thinking: for templates, of lines that do not say.
  """

  checkpoint: Checkpoint
  row: RowSettings
  max_length: int | None = None
  chat: bool = False
  enable_thinking: bool | None = None

  def read(self, path: str) -> Iterator[Task | Refused]:
    """Yields every line that is not blank, in order.

    Raises:
      UserError: the file cannot be read.
    """
    try:
      content = Path(path).read_bytes()
    except OSError as e:
      raise UserError(f"prompts_file {path!r} cannot be read: {e}.") from e
    seen: dict[Id, int] = {}
    for line, raw in enumerate(content.split(b"\n"), 1):
      if not raw.strip():
        continue
      name: Id | None = None
      try:
        given = _parse(raw, line)
        name = _id(given, line)
        if name in seen:
          raise UserError(
            f"line {line}: id {name!r} is that of line {seen[name]} already.",
            "repeated_id",
          )
        seen[name] = line
        yield self.task(given, line, name)
      except UserError as e:
        yield Refused(line, name, e)

  def task(self, given: dict[str, Any], line: int, name: Id) -> Task:
    """One task of its fields.

    Raises:
      UserError: a field that is unknown or cannot be served.
    """
    for field in given:
      if field not in FIELDS:
        raise UserError(
          f"unknown field {field!r}; known are {', '.join(FIELDS)}.",
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
    if think not in (None, True, False):
      raise UserError(
        f"enable_thinking should be true or false, got {think!r}."
      )
    variables = {} if think is None else {"enable_thinking": think}
    tokenizer, template = self.checkpoint.tokenizer, self.checkpoint.template
    return encode_prompt(tokenizer, template, source, **variables)


class Writer:
  """Appends results to a file, a line at a time, each one flushed.

  Attributes:
    done: ids that had a result before this run.
  """

  def __init__(self, path: str | None, settings: dict[str, Any], out: TextIO):
    """Opens --output (or `out` without one), keeping the results it holds.

    Raises:
      UserError: it cannot be written, was made with other settings, or holds
        something else.
    """
    self.done: set[Id] = set()
    self._file = out
    if path is None:
      return
    if not path:
      raise UserError("output should name a file, got ''.")
    try:
      self.done = _recover(Path(path), settings)
      self._file = open(path, "a", encoding="utf-8")
    except OSError as e:
      raise UserError(
        f"output {path!r} cannot be written: {e.strerror}."
      ) from e

  def result(self, task: Task, output: DecodeOutput) -> None:
    """Writes the result of a task."""
    fields = dataclasses.asdict(output)
    extra = ("accepted", "logprobs")
    fields = {
      k: v for k, v in fields.items() if k not in extra or v is not None
    }
    self._write({"id": task.id, **fields})

  def refusal(self, refused: Refused) -> None:
    """Writes why a line was not served."""
    error = {"type": refused.error.kind, "message": str(refused.error)}
    self._write({"id": refused.id, "line": refused.line, "error": error})

  def _write(self, fields: dict[str, Any]) -> None:
    line = json.dumps(fields, ensure_ascii=False)
    if any("\ud800" <= c <= "\udfff" for c in line):  # Not for UTF-8.
      line = json.dumps(fields)
    try:
      self._file.write(line + "\n")
      self._file.flush()
    except BrokenPipeError:
      raise
    except OSError as e:  # A full disk: what is written is kept.
      raise UserError(f"output {self._file.name!r}: {e}.") from e


def _parse(raw: bytes, line: int) -> dict[str, Any]:
  try:
    given = json.loads(raw.decode("utf-8").removeprefix("\ufeff"))
  except UnicodeDecodeError as e:
    raise UserError(f"line {line}: not UTF-8 ({e}).", "bad_utf8") from e
  except (ValueError, RecursionError) as e:
    raise UserError(f"line {line}: not JSON ({e}).", "bad_json") from e
  if not isinstance(given, dict):
    raise UserError(
      f"line {line}: expected a JSON object, got {given!r:.40}.", "bad_json"
    )
  return given


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


def _recover(path: Path, settings: dict[str, Any]) -> set[Id]:
  """Ids with a result; drops a torn last line and lines with an error."""
  beside = path.with_name(path.name + ".settings.json")
  wanted = json.dumps(settings, indent=2) + "\n"
  if not path.exists() or not path.stat().st_size:
    beside.write_text(wanted, encoding="utf-8")
    return set()
  if not beside.exists():
    raise UserError(
      f"output {str(path)!r} holds lines, but {beside.name} is not beside it;"
      " choose another --output or remove the file."
    )
  found = beside.read_text(encoding="utf-8", errors="replace")
  if found != wanted:
    raise UserError(
      f"output {str(path)!r} was made with other settings"
      f" ({_difference(found, settings)}); go on with those, or choose another"
      " --output."
    )
  kept, done = [], set()
  lines = path.read_bytes().split(b"\n")
  for number, raw in enumerate(lines, 1):
    try:
      given = json.loads(raw)
      failed, name = "error" in given, given["id"]
      hash(name)
    except (ValueError, KeyError, TypeError, RecursionError) as e:
      if number == len(lines):  # Torn, or empty behind the last newline.
        continue
      raise UserError(
        f"output {str(path)!r}: line {number} is no result of this command;"
        " choose another --output."
      ) from e
    if not failed:
      kept.append(raw)
      done.add(name)
  fresh = path.with_name(path.name + ".tmp")
  fresh.write_bytes(b"".join(raw + b"\n" for raw in kept))
  os.replace(fresh, path)
  return done


def _difference(found: str, settings: dict[str, Any]) -> str:
  try:
    old = json.loads(found)
    keys = [k for k in settings if old.get(k) != settings[k]]
    return ", ".join(f"{k}: {old.get(k)!r}, now {settings[k]!r}" for k in keys)
  except (ValueError, AttributeError):
    return "the settings file is not readable"
