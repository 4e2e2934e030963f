"""The input of a job, in parts: where each lies, not what it holds.

A part is read where it is decoded. To name its lines, and to know an id that is
there twice, all of the input is looked at once, before the job begins.
"""

import dataclasses
import functools
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemodiff_jax.cli.jobs import FIELDS, PROMPTS, Id, line_id
from nemodiff_jax.cli.openai_lines import is_request
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.jsonl import Line, check_text, is_blank, read_line

PARQUET = ".parquet"
_LONG = 2**63  # Beyond it, a number is no int64.


@dataclasses.dataclass(frozen=True)
class Part:
  """Lines that are decoded together and written to one file.

  Attributes:
    number: of the part, from 0.
    file: that holds it.
    first: number of its first line; files count on from one to the next.
    start: byte (Parquet: row) of the file where it begins.
    stop: byte or row behind its end.
    lines: that are not blank.
    seen: ids of its lines that an earlier part has, and in which line.
  """

  number: int
  file: str
  first: int
  start: int
  stop: int
  lines: int
  seen: dict[Id, int]


@dataclasses.dataclass(frozen=True)
class Source:
  """All of the input.

  Attributes:
    parts: in order.
    digest: of the bytes of all files.
    whole: every id is a whole number that fits in 64 bits.
    requests: number of the first line in the form of OpenAI's batch files.
  """

  parts: list[Part]
  digest: str
  whole: bool
  requests: int | None

  @property
  def lines(self) -> int:
    """How many are not blank."""
    return sum(part.lines for part in self.parts)


def scan(path: str, size: int) -> Source:
  """Looks at a file, or at the files of a folder in the order of their names.

  Args:
    path: a .parquet file, a file of JSON Lines, or a folder of one kind.
    size: lines of a part.

  Raises:
    UserError: nothing to read, or a file that cannot be read at all.
  """
  scanner = _Scanner(size)
  try:
    for file in _files(path):
      scanner.add(file)
  except OSError as e:
    raise UserError(f"prompts_file {path!r} cannot be read: {e}.") from e
  except UserError as e:
    raise UserError(f"prompts_file {path!r}: {e}") from e
  return Source(
    scanner.parts,
    scanner.digest.hexdigest(),
    all(isinstance(i, int) and abs(i) < _LONG for i in scanner.seen),
    scanner.requests,
  )


def read(part: Part) -> Iterator[Line]:
  """The lines of a part.

  Raises:
    UserError: the file is not what it was.
    OSError: it cannot be read.
  """
  if part.file.endswith(PARQUET):
    rows = _rows(part.file, part.start, part.stop)
    for number, row in enumerate(rows, part.first):
      yield Line(number, _given(row))
    return
  with open(part.file, "rb") as file:
    file.seek(part.start)
    content = file.read(part.stop - part.start)
  if len(content) != part.stop - part.start:
    raise UserError(
      f"{part.file} has become shorter; let it be while it is read."
    )
  for number, raw in enumerate(io.BytesIO(content), part.first):
    if not is_blank(raw):
      yield read_line(raw, number)


def _files(path: str) -> list[str]:
  if path == "-":
    raise UserError("expected a file or a folder: machines read it themselves.")
  given = Path(os.path.abspath(os.path.expanduser(path)))
  if not given.is_dir():
    return [str(given)]
  found = [str(f) for f in sorted(given.glob("[!._]*")) if f.is_file()]
  kinds = {Path(f).suffix for f in found}
  if not kinds or kinds > {PARQUET}:
    raise UserError(
      "expected a folder of JSON Lines files or of .parquet files, found"
      f" {', '.join(sorted(kinds)) or 'no file'}."
    )
  return found


class _Scanner:
  """Cuts files into parts.

  Attributes:
    parts: so far.
    seen: where each id was first.
    digest: of the bytes.
    requests: first line in the form of OpenAI's batch files.
  """

  def __init__(self, size: int):
    self.parts: list[Part] = []
    self.seen: dict[Id, int] = {}
    self.digest = hashlib.sha256()
    self.requests: int | None = None
    self._size = size
    self._next = 1  # Number of the next line.

  def add(self, file: str) -> None:
    add = self._add_parquet if file.endswith(PARQUET) else self._add_lines
    add(file)

  def _add_lines(self, file: str) -> None:
    position = 0
    start, first, lines = 0, self._next, []
    with open(file, "rb") as opened:
      for index, raw in enumerate(opened):
        if index == 0:
          check_text(raw)
        self.digest.update(raw)
        position += len(raw)
        if not is_blank(raw):
          line = read_line(raw, self._next)
          if self.requests is None and is_request(line.value):
            self.requests = line.number
          lines.append(line)
        self._next += 1
        if len(lines) == self._size:
          self._cut(file, first, start, position, lines)
          start, first, lines = position, self._next, []
    self._cut(file, first, start, position, lines)

  def _add_parquet(self, file: str) -> None:
    opened = _open(file)
    names = opened.schema_arrow.names
    for name in names:
      if name not in FIELDS:
        raise UserError(
          f"unknown column {name!r}; known are {', '.join(FIELDS)}. Write the"
          " file without it.",
          "unknown_field",
        )
    if not {*names} & {*PROMPTS}:
      raise UserError(
        f"expected a column {', '.join(PROMPTS[:-1])} or {PROMPTS[-1]}, found"
        f" {', '.join(names) or 'none'}.",
        "no_prompt",
      )
    with open(file, "rb") as whole:
      self.digest.update(hashlib.file_digest(whole, "sha256").digest())
    start = 0
    columns = [name for name in names if name == "id"]
    for batch in opened.iter_batches(self._size, columns=columns):
      ids = batch.to_pylist() if columns else [{}] * batch.num_rows
      lines = [Line(n, _given(row)) for n, row in enumerate(ids, self._next)]
      first, self._next = self._next, self._next + len(lines)
      self._cut(file, first, start, start + len(lines), lines)
      start += len(lines)

  def _cut(
    self, file: str, first: int, start: int, stop: int, lines: list[Line]
  ) -> None:
    """Makes a part of lines, unless there are none."""
    repeated = {}
    for line in lines:
      if line.error is not None:
        continue  # Has no name that counts.
      try:
        name = line_id(line)
      except UserError:
        continue
      if self.seen.setdefault(name, line.number) < first:
        repeated[name] = self.seen[name]
    if lines:
      number = len(self.parts)
      self.parts.append(
        Part(number, file, first, start, stop, len(lines), repeated)
      )


def _open(file: str) -> Any:
  import pyarrow
  import pyarrow.parquet as pq

  try:
    return pq.ParquetFile(file)
  except pyarrow.ArrowInvalid as e:
    raise UserError(f"{file} is no Parquet file ({e}).") from e


def _rows(file: str, start: int, stop: int) -> Iterator[dict[str, Any]]:
  """Rows of a Parquet file, whose groups are read whole."""
  opened, begin = _open(file), 0
  for group in range(opened.num_row_groups):
    end = begin + opened.metadata.row_group(group).num_rows
    if begin < stop and start < end:
      low, high = max(start - begin, 0), min(stop, end) - begin
      yield from _group(file, group).slice(low, high - low).to_pylist()
    begin = end


@functools.lru_cache(maxsize=1)  # Parts that lie side by side come in turn.
def _group(file: str, group: int) -> Any:
  return _open(file).read_row_group(group)


def _given(value: Any) -> Any:
  """A row without its nulls: a column has no other word for 'absent'."""
  if isinstance(value, dict):
    return {k: _given(v) for k, v in value.items() if v is not None}
  if isinstance(value, list):
    return [_given(v) for v in value]
  return value
