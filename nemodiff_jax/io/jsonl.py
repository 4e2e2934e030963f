"""JSON Lines as the world has them: the one reader of jobs and training.

A line ends at a line feed and nowhere else: U+2028, U+2029 and U+0085 may stand
in a text. CRLF, blank lines and byte order marks do no harm. A line that is no
object, or not one thing, is an error of that line alone.
"""

import collections
import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

from nemodiff_jax.errors import UserError

# Python's own limit depends on its version; what is deeper can neither be
# shown nor rendered everywhere.
MAX_DEPTH = 100
_BOM = b"\xef\xbb\xbf"
_LINE_ENDS = "\x85\u2028\u2029"
_NOT_TEXT = {
  b"\x1f\x8b": "gzip",
  b"BZh": "bzip2",
  b"\xfd7zXZ": "xz",
  b"\x28\xb5\x2f\xfd": "zstandard",
  b"PK\x03\x04": "zip",
  b"\xff\xfe": "UTF-16",
  b"\xfe\xff": "UTF-16",
}


@dataclasses.dataclass(frozen=True)
class Line:
  """A line that is not blank.

  Attributes:
    number: of the line, from 1; blank lines count.
    value: the object; empty where the line is none.
    error: why it cannot be used ('bad_utf8' or 'bad_json'); None: it can be.
  """

  number: int
  value: dict[str, Any]
  error: UserError | None = None


def read_lines(lines: Iterable[bytes]) -> Iterator[Line]:
  """Yields the lines of a file opened as bytes, without the blank ones.

  Raises:
    UserError: the file is compressed, or no UTF-8 from its first bytes on.
  """
  for number, raw in enumerate(lines, 1):
    if number == 1:
      check_text(raw)
    if not is_blank(raw):
      yield read_line(raw, number)


def read_line(raw: bytes, number: int) -> Line:
  """What one line holds.

  NaN and Infinity, which Python writes, are read: who takes a number checks it.
  """
  repeated: list[str] = []

  def fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    count = collections.Counter(key for key, _ in pairs)
    repeated.extend(key for key in count if count[key] > 1)
    return dict(pairs)

  try:
    text = raw.removeprefix(_BOM).decode("utf-8")
    value = json.loads(text, object_pairs_hook=fields)
  except UnicodeDecodeError as e:
    return Line(number, {}, UserError(f"not UTF-8 ({e}).", "bad_utf8"))
  except (ValueError, RecursionError) as e:
    return Line(number, {}, UserError(f"not JSON ({e}).", "bad_json"))
  if _deeper_than(MAX_DEPTH, value):
    message = f"nested deeper than {MAX_DEPTH} levels."
    return Line(number, {}, UserError(message, "bad_json"))
  if not isinstance(value, dict):
    message = f"expected a JSON object, got {value!r:.40}."
    return Line(number, {}, UserError(message, "bad_json"))
  if repeated:
    message = f"the key {repeated[0]!r:.40} is there twice; keep one of them."
    return Line(number, value, UserError(message, "bad_json"))
  if not is_text(json.dumps(value, ensure_ascii=False)):
    message = "holds half of a surrogate pair, which is no character."
    return Line(number, value, UserError(message, "bad_utf8"))
  return Line(number, value)


def dump_line(value: Any) -> bytes:
  """One line of UTF-8, with its line feed, that every reader takes for one.

  Numbers that JSON has no word for (NaN, Infinity) become null; what Python's
  `splitlines` takes for the end of a line is escaped.
  """
  write = lambda value, ascii=False: json.dumps(
    value, ensure_ascii=ascii, allow_nan=False
  )
  try:
    text = write(value)
  except ValueError:
    value = _without_nan(value)
    text = write(value)
  if not is_text(text):
    text = write(value, True)
  for mark in _LINE_ENDS:
    text = text.replace(mark, f"\\u{ord(mark):04x}")
  return text.encode() + b"\n"


def is_blank(raw: bytes) -> bool:
  """Whether a line holds nothing but white space."""
  return not raw.removeprefix(_BOM).strip()


def is_text(text: str) -> bool:
  """Whether a string can be written as UTF-8: no half of a surrogate pair."""
  try:
    text.encode("utf-8")
  except UnicodeEncodeError:
    return False
  return True


def check_text(head: bytes) -> None:
  """Refuses a file by its first bytes.

  Raises:
    UserError: it is compressed, or UTF-16.
  """
  for magic, name in _NOT_TEXT.items():
    if head.startswith(magic):
      raise UserError(
        f"expected JSON Lines in UTF-8, found {name}; unpack or convert the"
        " file first."
      )


def _deeper_than(most: int, value: Any) -> bool:
  """Whether lists and objects nest deeper; needs no stack."""
  level = [value] if isinstance(value, (dict, list)) else []
  for _ in range(most):
    level = [
      child
      for node in level
      for child in (node.values() if isinstance(node, dict) else node)
      if isinstance(child, (dict, list))
    ]
  return bool(level)


def _without_nan(value: Any) -> Any:
  if isinstance(value, dict):
    return {k: _without_nan(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_without_nan(v) for v in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
