"""Where training documents come from; each source is a sequence of records."""

import json
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemodiff_jax.errors import UserError
from train import arithmetic

FAMILY_SHARES = {"chain": 0.25, "legs": 0.25, "time": 0.2, "drill": 0.3}
_ENDLESS = 1 << 40


class Lines:
  """The lines of JSON Lines files, found by offset, parsed when asked for.

  Attributes:
    skipped: where each unusable line is -> what is wrong with it.
  """

  def __init__(self, paths: Sequence[Path], on_error: str):
    self._paths = [Path(p) for p in paths]
    self._on_error = on_error
    self._offsets = [_line_offsets(p) for p in self._paths]
    self._first = np.cumsum([0, *(len(o) for o in self._offsets)])
    self.skipped: dict[str, str] = {}
    self._lock = threading.Lock()
    if not len(self):
      raise UserError(f"{', '.join(map(str, paths))}: expected lines of JSON.")

  def __len__(self) -> int:
    return int(self._first[-1])

  def __getitem__(self, index: int) -> dict[str, Any]:
    """The record, with 'where' in it; an unparsable one holds 'error'."""
    file = int(np.searchsorted(self._first, index, "right")) - 1
    line = int(index - self._first[file])
    where = f"{self._paths[file]}:{line + 1}"
    with self._paths[file].open("rb") as stream:
      stream.seek(self._offsets[file][line])
      text = stream.readline()
    try:
      record = json.loads(text.decode("utf-8"))
    except ValueError as e:
      return {"where": where, "error": f"not a line of JSON ({e})"}
    if not isinstance(record, dict):
      return {"where": where, "error": f"expected an object, got {record!r}"}
    return record | {"where": where}

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
  """Endless worked arithmetic; questions that are held out never occur."""

  def __init__(self, seed: int, shares: dict[str, float] = FAMILY_SHARES):
    self._seed, self._shares = seed, shares
    self._held = {
      q for f in arithmetic.FAMILIES for q, *_ in arithmetic.held_out(f, 500)
    }
    self.skipped: dict[str, str] = {}

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, index: int) -> dict[str, Any]:
    """A conversation of two turns."""
    rng = random.Random(f"{self._seed} {index}")
    question, answer = next(self._fresh(rng))
    return {
      "where": f"arithmetic example {index}",
      "messages": [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
      ],
    }

  def _fresh(self, rng: random.Random) -> Iterator[tuple[str, str]]:
    while True:
      family = rng.choices(list(self._shares), list(self._shares.values()))[0]
      question, answer, _ = arithmetic.example(rng, family)
      if question not in self._held:
        yield question, answer

  def refuse(self, where: str, why: str) -> None:
    """Nothing to skip: what this makes can be used, or the model is wrong."""
    raise UserError(f"{where}: {why}.")


class Shards:
  """Tokenised shards, as `train.make_shards` writes them.

  A shard NAME is NAME.tokens.npy (all documents, one after another) and
  NAME.ends.npy (one past each document's last token).
  """

  def __init__(self, folder: Path, vocab_size: int):
    self._tokens, self._ends = [], []
    for path in sorted(folder.glob("*.tokens.npy")):
      ends = Path(str(path).replace(".tokens.npy", ".ends.npy"))
      try:
        self._tokens.append(np.load(path, mmap_mode="r"))
        self._ends.append(np.load(ends))
      except (OSError, ValueError) as e:
        raise UserError(f"{path}: not a readable shard ({e}).") from e
      if not len(self._ends[-1]) or self._ends[-1][-1] != len(self._tokens[-1]):
        raise UserError(
          f"{ends}: the last document should end at {len(self._tokens[-1])},"
          " the number of tokens; the shard is cut short."
        )
    if not self._tokens:
      raise UserError(f"{folder}: expected shards NAME.tokens.npy, found none.")
    self._vocab = vocab_size
    self._first = np.cumsum([0, *(len(e) for e in self._ends)])
    self.skipped: dict[str, str] = {}

  def __len__(self) -> int:
    return int(self._first[-1])

  def __getitem__(self, index: int) -> dict[str, Any]:
    """A document's ids."""
    shard = int(np.searchsorted(self._first, index, "right")) - 1
    i = int(index - self._first[shard])
    ends = self._ends[shard]
    ids = np.asarray(self._tokens[shard][ends[i - 1] if i else 0 : ends[i]])
    where = f"document {i} of shard {shard}"
    if ids.size and int(ids.max()) >= self._vocab:
      return {
        "where": where,
        "error": f"holds id {ids.max()}, out of the"
        f" vocabulary of {self._vocab}",
      }
    return {"where": where, "ids": ids}

  def refuse(self, where: str, why: str) -> None:
    """A shard that does not fit the model cannot be used in part."""
    raise UserError(f"{where}: {why}; tokenise the data with this model's.")


def _line_offsets(path: Path) -> np.ndarray:
  """Where each line starts.

  Raises:
    UserError: the file cannot be read.
  """
  offsets, at = [], 0
  try:
    with path.open("rb") as file:
      for line in file:
        offsets.append(at)
        at += len(line)
  except OSError as e:
    raise UserError(f"{path}: expected a file of JSON lines ({e}).") from e
  return np.array(offsets, np.int64)
