"""Results of a job: appended a line at a time, and kept when it goes on."""

import dataclasses
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from nemodiff_jax.api import DecodeOutput
from nemodiff_jax.cli import openai_lines
from nemodiff_jax.cli.jobs import BatchTask, Id, Item, Refused, Task
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.jsonl import dump_line

_LONGEST = 500  # Characters of an error: a value in it may be a whole book.


class Writer:
  """Appends results to a file, a line at a time, each one flushed.

  One writer at a time has the file: it holds a lock, which ends with the
  process however that ends.

  Attributes:
    done: ids that had a result before this run.
  """

  def __init__(
    self,
    path: str | None,
    settings: dict[str, Any],
    out: TextIO,
    refused: Sequence[Refused] = (),
  ):
    """Opens --output (or `out` without one), keeping what it holds.

    Kept are results, and the lines of `refused`, which this run would write
    again. Other error lines are dropped: their lines are tried again.

    Raises:
      UserError: it cannot be written, another job is writing it, it was made
        with other settings, or holds something else.
    """
    self.done: set[Id] = set()
    self._there: set[bytes] = set()
    if path is None:
      out.flush()
      self._file: BinaryIO = out.buffer
      return
    if not path:
      raise UserError("output should name a file, got ''.")
    path = os.path.expanduser(path)
    # Devices and pipes hold nothing to go on from.
    regular = not os.path.exists(path) or os.path.isfile(path)
    try:
      self._file = open(path, "a+b" if regular else "ab")
      if regular:
        _lock(self._file, path, fcntl.lockf)  # By any name that it has.
        self._settings = _claim(path, settings, os.path.getsize(path) > 0)
        self._recover(path, {dump_line(refusal_fields(r)) for r in refused})
    except OSError as e:
      raise UserError(
        f"output {path!r} cannot be written: {e.strerror}."
      ) from e

  def has(self, item: Item) -> bool:
    """Whether the line was served before this run."""
    again = isinstance(item, Refused) and item.error.kind == "repeated_id"
    return item.id in self.done and not again

  def result(
    self, task: Task | BatchTask, output: DecodeOutput | dict[str, Any]
  ) -> None:
    """Writes the result of a task: an output, or the body of an answer."""
    self._write(dump_line(result_fields(task, output)))

  def refusal(self, refused: Refused) -> None:
    """Writes why a line was not served, unless it is there."""
    line = dump_line(refusal_fields(refused))
    if line not in self._there:
      self._write(line)

  def _write(self, line: bytes) -> None:
    try:
      self._file.write(line)
      self._file.flush()
    except BrokenPipeError:
      raise
    except OSError as e:  # A full disk: what is written is kept.
      raise UserError(f"output {self._file.name!r}: {e}.") from e

  def _recover(self, path: str, refused: set[bytes]) -> None:
    """Learns what is done; cuts a torn last line, drops what was mended."""
    self._file.seek(0)
    lines = list(self._file)
    kept = []
    for number, raw in enumerate(lines, 1):
      try:
        name, served = outcome(json.loads(raw))
      except (ValueError, LookupError, TypeError, RecursionError) as e:
        if number == len(lines) and not raw.endswith(b"\n"):
          break  # Torn.
        raise UserError(
          f"output {path!r}: line {number} is no result of this command;"
          " choose another --output."
        ) from e
      if served:
        self.done.add(name)
      elif raw in refused:
        self._there.add(raw)
      else:
        continue
      kept.append(raw)
    if kept != lines[: len(kept)]:
      self._rewrite(path, kept)
    elif len(kept) < len(lines):
      self._file.truncate(sum(map(len, kept)))
    if kept and not kept[-1].endswith(b"\n"):
      self._write(b"\n")

  def _rewrite(self, path: str, lines: list[bytes]) -> None:
    """Puts lines in the place of the file's, all or none."""
    real = os.path.realpath(path)
    with open(real + ".tmp", "wb") as fresh:
      fresh.writelines(lines)
      fresh.flush()
      os.fsync(fresh.fileno())
    shutil.copymode(real, real + ".tmp")
    os.replace(real + ".tmp", real)
    self._file = open(path, "a+b")
    _lock(self._file, path, fcntl.lockf)


def result_fields(
  task: Task | BatchTask, output: DecodeOutput | dict[str, Any]
) -> dict[str, Any]:
  """What is told of a task, by its output or the body of its answer."""
  if not isinstance(output, DecodeOutput):
    return openai_lines.answer(task.line, task.id, output)
  extra = ("accepted", "logprobs")
  fields = {"id": task.id, **dataclasses.asdict(output)}
  return {k: v for k, v in fields.items() if k not in extra or v is not None}


def refusal_fields(refused: Refused) -> dict[str, Any]:
  """What is told of a line that was not served."""
  if refused.batch:
    return openai_lines.refusal(refused.line, refused.id, refused.error)
  kind, message = refused.error.kind, str(refused.error)
  if len(message) > _LONGEST:
    message = message[:_LONGEST] + "..."
  error = {"type": kind, "message": message}
  return {"id": refused.id, "line": refused.line, "error": error}


def outcome(given: dict[str, Any]) -> tuple[Any, bool]:
  """The id of a line of the output, and whether it is a result."""
  if "custom_id" in given:
    name, served = openai_lines.outcome(given)
  else:
    name, served = given["id"], "error" not in given
  hash(name)
  return name, served


def _claim(path: str, settings: dict[str, Any], begun: bool) -> TextIO:
  """The locked settings file beside an output, which goes on if `begun`."""
  beside = Path(path).with_name(Path(path).name + ".settings.json")
  if begun and not beside.exists():
    raise UserError(
      f"output {path!r} holds lines, but {beside.name} is not beside it;"
      " choose another --output or remove the file."
    )
  return claim(path, beside, settings, begun)


def claim(
  path: str, beside: Path, settings: dict[str, Any], begun: bool
) -> TextIO:
  """Locks an output by its settings file until what is returned is closed.

  Args:
    path: the output.
    beside: its settings file.
    settings: what decides the results.
    begun: there are results, of the settings that the file holds.

  Raises:
    UserError: another job writes the output, or its settings are others.
  """
  file = open(beside, "a+", encoding="utf-8", errors="replace")
  _lock(file, path, fcntl.flock)
  wanted = json.dumps(settings, indent=2) + "\n"
  if not begun:
    file.truncate(0)
    file.write(wanted)
    file.flush()
    return file
  file.seek(0)
  found = file.read()
  if found != wanted:
    raise UserError(
      f"output {path!r} was made with other settings"
      f" ({_difference(found, settings)}); go on with those, or choose another"
      " --output."
    )
  return file


def _lock(file: BinaryIO | TextIO, path: str, lock: Any) -> None:
  try:
    lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except (BlockingIOError, PermissionError) as e:
    raise UserError(
      f"output {path!r} is being written by another job; wait for its end, or"
      " choose another --output."
    ) from e
  except OSError as e:  # A file system without locks.
    print(
      f"output {path!r} cannot be locked ({e.strerror}): run one job on it.",
      file=sys.stderr,
    )


def _difference(found: str, settings: dict[str, Any]) -> str:
  try:
    old = json.loads(found)
    keys = [k for k in settings if old.get(k) != settings[k]]
    return ", ".join(f"{k}: {old.get(k)!r}, now {settings[k]!r}" for k in keys)
  except (ValueError, AttributeError):
    return "the settings file is not readable"
