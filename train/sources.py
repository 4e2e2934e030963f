"""Where training documents come from; each source is a sequence of records."""

import dataclasses
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemodiff_jax.errors import UserError
from nemodiff_jax.io import jsonl
from train import arithmetic

FAMILY_SHARES = {"chain": 0.25, "legs": 0.25, "time": 0.2, "drill": 0.3}
_ENDLESS = 1 << 40


class Lines:
  """The lines of JSON Lines files, found by offset, parsed when asked for.

  Blank lines are no records.

  Attributes:
    skipped: where each unusable line is -> what is wrong with it.
  """

  def __init__(self, paths: Sequence[Path], on_error: str):
    self._paths = [Path(p) for p in paths]
    self._on_error = on_error
    self._lines = [_index_lines(p) for p in self._paths]
    self._first = np.cumsum([0, *(len(x.offsets) for x in self._lines)])
    self.skipped: dict[str, str] = {}
    self._lock = threading.Lock()
    if not len(self):
      raise UserError(f"{', '.join(map(str, paths))}: expected lines of JSON.")

  def __len__(self) -> int:
    return int(self._first[-1])

  def __getitem__(self, index: int) -> dict[str, Any]:
    """The record, with 'where' in it; an unparsable one holds 'error'."""
    file = int(np.searchsorted(self._first, index, "right")) - 1
    at = int(index - self._first[file])
    number = self._lines[file].number(at)
    where = f"{self._paths[file]}:{number}"
    with self._paths[file].open("rb") as stream:
      stream.seek(self._lines[file].offsets[at])
      line = jsonl.read_line(stream.readline(), number)
    if line.error is not None:
      return {"where": where, "error": str(line.error)}
    return line.value | {"where": where}

  def refuse(self, where: str, why: str) -> None:
    """Raises, or counts the line as skipped.

    Raises:
      UserError: on_error is 'error'; or no line is left.
    """
    if self._on_error == "error":
      raise UserError(
        f"{where}: {why}; mend the line, or skip such lines with"
        " --config.data.on_error=skip."
      )
    with self._lock:
      self.skipped[where] = why
      if len(self.skipped) >= len(self):
        raise UserError(f"{where}: {why}; no line of the data could be used.")


class Arithmetic:
  """Endless worked arithmetic; questions that are held out never occur.

  Args:
    seed: of the examples.
    shares: family -> how often it is drawn.
  """

  def __init__(self, seed: int, shares: dict[str, float] = FAMILY_SHARES):
    self._seed, self._shares = seed, shares
    self._held = {
      q for f in arithmetic.HELD_OUT for q, *_ in arithmetic.held_out(f, 500)
    }
    self.skipped: dict[str, str] = {}

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, index: int) -> dict[str, Any]:
    """A conversation of two turns."""
    rng = random.Random(f"{self._seed} {index}")
    question, answer = next(self._fresh(rng))
    return _turns(f"arithmetic example {index}", question, answer)

  def _fresh(self, rng: random.Random) -> Iterator[tuple[str, str]]:
    while True:
      family = rng.choices(list(self._shares), list(self._shares.values()))[0]
      question, answer, _ = arithmetic.example(rng, family)
      if question not in self._held:
        yield question, answer

  def refuse(self, where: str, why: str) -> None:
    """Nothing to skip: what this makes can be used, or the model is wrong."""
    raise UserError(f"{where}: {why}.")


class HeldOut:
  """The examples that arithmetic leaves out of training."""

  def __init__(self, families: Sequence[str], count: int = 100):
    self._examples = [
      x for f in families for x in arithmetic.held_out(f, count)
    ]
    self.skipped: dict[str, str] = {}

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """A conversation of two turns."""
    question, answer, _ = self._examples[index]
    return _turns(f"held-out example {index}", question, answer)

  def refuse(self, where: str, why: str) -> None:
    """Nothing to skip here either."""
    raise UserError(f"{where}: {why}.")


def _turns(where: str, question: str, answer: str) -> dict[str, Any]:
  return {
    "where": where,
    "messages": [
      {"role": "user", "content": question},
      {"role": "assistant", "content": answer},
    ],
  }


def source_paths(source: str) -> list[Path]:
  """The files or the folder that a `source` names, commas between."""
  return [Path(p.strip()).expanduser() for p in source.split(",") if p.strip()]


def family_shares(source: str) -> dict[str, float] | None:
  """Family -> share of 'arithmetic' or 'arithmetic:FAMILY'; None: no such.

  Raises:
    UserError: a family that is not known.
  """
  name, _, family = source.strip().partition(":")
  if name != "arithmetic" or source_paths(source)[0].exists():
    return None
  if not family:
    return FAMILY_SHARES
  if family not in arithmetic.HELD_OUT:
    raise UserError(
      f"arithmetic: its families are {arithmetic.HELD_OUT}, got {family!r}."
    )
  return {family: 1.0}


@dataclasses.dataclass(frozen=True)
class _Index:
  """Where the lines of a file are.

  Attributes:
    offsets: of each line that is not blank.
    blanks: numbers of the blank lines, from 0.
  """

  offsets: np.ndarray
  blanks: np.ndarray

  def number(self, at: int) -> int:
    """The number, from 1, of a line that is not blank."""
    before = self.blanks - np.arange(self.blanks.size)
    return at + 1 + int(np.searchsorted(before, at, "right"))


def _index_lines(path: Path) -> _Index:
  """Finds the lines of a file.

  Raises:
    UserError: the file cannot be read, or holds no text.
  """
  offsets, blanks, at = [], [], 0
  try:
    with path.open("rb") as file:
      for number, line in enumerate(file):
        if number == 0:
          jsonl.check_text(line)
        if jsonl.is_blank(line):
          blanks.append(number)
        else:
          offsets.append(at)
        at += len(line)
  except OSError as e:
    raise UserError(f"{path}: expected a file of JSON lines ({e}).") from e
  except UserError as e:
    raise UserError(f"{path}: {e}") from e
  return _Index(np.array(offsets, np.int64), np.array(blanks, np.int64))
