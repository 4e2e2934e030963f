"""The output of a job: part files, each whole or not there, and a manifest.

Names that begin with a dot or an underscore are left out by what reads folders
of data.
"""

import contextlib
import json
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from nemodiff_jax.cli.results import claim, outcome
from nemodiff_jax.errors import UserError
from nemodiff_jax.fleet import columns
from nemodiff_jax.io.jsonl import dump_line

MANIFEST = "_manifest.json"
JSONL, PARQUET = "jsonl", "parquet"
_PART = re.compile(r"part-(\d{6,})\.(jsonl|parquet)")


class Folder:
  """The folder of a job, held until the context ends, or the process.

  Attributes:
    path: of the folder.
    done: numbers of parts that were there before.
  """

  def __init__(self, path: str, settings: dict[str, Any]):
    """Makes the folder, or goes on with that of the same job.

    Args:
      path: of the folder.
      settings: what decides the results, kept in the manifest.

    Raises:
      UserError: it cannot be written, another job is writing it, it is of
        another job, or holds something else.
    """
    if not path:
      raise UserError("output should name a folder, got ''.")
    self.path = os.path.abspath(os.path.expanduser(path))
    if os.path.exists(self.path) and not os.path.isdir(self.path):
      raise UserError(f"output {path!r} is a file; name a folder.")
    manifest = Path(self.path) / MANIFEST
    try:
      os.makedirs(self.path, exist_ok=True)
      names = os.listdir(self.path)
      held = [n for n in names if n != MANIFEST and not n.startswith(".part-")]
      if held and not manifest.exists():
        raise UserError(
          f"output {path!r} holds files, but no {MANIFEST} of a job; choose"
          " another --output."
        )
      self._lock = claim(path, manifest, settings, bool(held))
      for name in names:
        if name.startswith(".part-"):
          os.remove(os.path.join(self.path, name))
    except OSError as e:
      raise UserError(
        f"output {path!r} cannot be written: {e.strerror}."
      ) from e
    found = (_PART.fullmatch(name) for name in names)
    self.done = {int(match[1]) for match in found if match}

  def __enter__(self) -> Self:
    """Holds it already."""
    return self

  def __exit__(self, *_) -> None:
    """Lets another job have it."""
    self._lock.close()

  def errors(self, number: int, form: str) -> int:
    """How many lines of a part that is done could not be served."""
    path = part_path(self.path, number, form)
    if form == PARQUET:
      return columns.errors(path)
    with open(path, "rb") as file:
      return sum(not outcome(json.loads(raw))[1] for raw in file)


def part_path(folder: str, number: int, form: str) -> str:
  """Where the file of a part is."""
  return os.path.join(folder, f"part-{number:06}.{form}")


def write_part(
  folder: str,
  number: int,
  form: str,
  rows: Mapping[int, dict[str, Any]],
  whole: bool,
) -> None:
  """Writes the file of a part: all of it, or none.

  Args:
    folder: of the job.
    number: of the part.
    form: JSONL or PARQUET.
    rows: what is told of each line, by its number.
    whole: ids are whole numbers.

  Raises:
    OSError: it cannot be written; nothing is left of it.
  """
  path = part_path(folder, number, form)
  fresh = os.path.join(folder, f".part-{number:06}.{uuid.uuid4().hex}")
  try:
    if form == PARQUET:
      named = [{"line": line, **rows[line]} for line in sorted(rows)]
      columns.write(fresh, named, whole)
    else:
      with open(fresh, "wb") as file:
        file.writelines(dump_line(rows[line]) for line in sorted(rows))
    _to_disk(fresh)
    os.replace(fresh, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.remove(fresh)
    raise


def _to_disk(path: str) -> None:
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


class Tries:
  """Counts on disk how often a part was begun: a process may die of it."""

  def __init__(self, folder: str, number: int, most: int):
    self._path = os.path.join(folder, f".part-{number:06}.tries")
    self._most = most

  def begin(self) -> None:
    """Counts one.

    Raises:
      UserError: it was begun as often as it may be.
    """
    with open(self._path, "ab") as file:
      if file.tell() >= self._most:
        raise UserError(
          f"its process died {self._most} times; is there memory for it? Use a"
          " smaller --batch_size, or fewer --actors on a machine."
        )
      file.write(b".")

  def end(self) -> None:
    """The part is done."""
    with contextlib.suppress(OSError):
      os.remove(self._path)
