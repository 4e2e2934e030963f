"""The folder of a run: what was asked and how, every reply, the results.

run.json         every setting that decides a number, and the machine
questions.jsonl  the questions and their answers
samples.jsonl    one line per task, setting and question
results.json     one row per task and setting
report.html      the same, to be read
"""

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nemodiff_jax.errors import UserError
from nemodiff_jax.io.jsonl import dump_line

RUN, QUESTIONS = "run.json", "questions.jsonl"
SAMPLES, RESULTS = "samples.jsonl", "results.json"
Sample = dict[str, Any]


class Record:
  """A run that is being written; a stopped one goes on.

  Attributes:
    folder: where it lies.
    samples: all that is known, in the order of the file.
  """

  def __init__(
    self, folder: Path, settings: dict[str, Any], made: dict[str, Any]
  ):
    """Opens a folder for a run with these settings.

    Args:
      folder: new, empty, or with a run of the same settings.
      settings: what decides the numbers.
      made: what does not: date, batch size.

    Raises:
      UserError: it cannot be written, or holds another run.
    """
    self.folder = folder
    settings = json.loads(json.dumps(settings))
    try:
      folder.mkdir(parents=True, exist_ok=True)
      path = folder / RUN
      if path.exists():
        _check_same(folder, settings, load_run(folder)["settings"])
      elif any(folder.iterdir()):
        raise UserError(
          f"{folder} holds files, but no {RUN}; choose another --out."
        )
      else:
        write_json(path, {"settings": settings, "made": made})
      self._file = open(folder / SAMPLES, "a+b")
    except OSError as e:
      raise UserError(f"{folder} cannot be written: {e.strerror}.") from e
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
      raise UserError(f"another run is writing {folder}.") from e
    self.samples = self._recover()

  def done(self, task: str, setting: str) -> dict[str, Sample]:
    """Samples by the question's id."""
    return {
      s["id"]: s
      for s in self.samples
      if s["task"] == task and s["setting"] == setting
    }

  def add(self, sample: Sample) -> None:
    """Writes a sample at once."""
    self._file.write(dump_line(sample))
    self._file.flush()
    self.samples.append(sample)

  def write_questions(self, lines: Iterable[dict[str, Any]]) -> None:
    """Writes what was asked."""
    with open(self.folder / QUESTIONS, "wb") as file:
      file.writelines(map(dump_line, lines))

  def close(self) -> None:
    """Lets others write."""
    self._file.close()

  def _recover(self) -> list[Sample]:
    """What was written before; a torn last line is cut off."""
    self._file.seek(0)
    found, end = [], 0
    for raw in self._file:
      if not raw.endswith(b"\n"):
        self._file.truncate(end)
        break
      end += len(raw)
      found.append(json.loads(raw))
    return found


def load_run(folder: Path) -> dict[str, Any]:
  """The run.json of a folder.

  Raises:
    UserError: there is none, or it cannot be read.
  """
  try:
    run = json.loads((folder / RUN).read_text())
    run["settings"], run["made"]
    return run
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise UserError(f"{folder} holds no readable {RUN} of a run ({e}).") from e


def load_samples(folder: Path) -> list[Sample]:
  """All complete lines of samples.jsonl."""
  return _lines(folder / SAMPLES)


def load_questions(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
  """Questions by (task, id)."""
  lines = _lines(folder / QUESTIONS)
  return {(q["task"], q["id"]): q for q in lines}


def _lines(path: Path) -> list[dict[str, Any]]:
  try:
    raw = path.read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in raw if line.endswith(b"\n")]
  except (OSError, ValueError) as e:
    raise UserError(f"{path} cannot be read ({e}).") from e


def write_json(path: Path, value: Any) -> None:
  """Writes a file that appears whole or not at all."""
  text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
  fresh = path.with_name(path.name + ".tmp")
  fresh.write_text(text, encoding="utf-8")
  os.replace(fresh, path)


def differences(a: Any, b: Any, name: str = "") -> list[str]:
  """Names of the settings that differ, with both values."""
  if isinstance(a, dict) and isinstance(b, dict):
    keys = [*a, *(k for k in b if k not in a)]
    parts = [
      differences(a.get(k), b.get(k), f"{name}.{k}" if name else k)
      for k in keys
    ]
    return [d for part in parts for d in part]
  if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
    parts = [
      differences(x, y, f"{name}[{i}]")
      for i, (x, y) in enumerate(zip(a, b, strict=True))
    ]
    return [d for part in parts for d in part]
  if a == b:
    return []
  short = lambda x: text if len(text := repr(x)) <= 60 else text[:57] + "..."
  return [f"{name}: {short(a)} and {short(b)}"]


def _check_same(folder: Path, mine: dict, found: dict) -> None:
  if differ := differences(found, mine):
    raise UserError(
      f"{folder} holds another run, which differs in"
      f" {'; '.join(differ)}. Choose another --out."
    )
