"""What a run tells: metrics.jsonl, TensorBoard, lines on stderr, memory."""

import json
import math
import resource
import sys
from pathlib import Path
from typing import Any

import jax
import tqdm
from tensorboardX import SummaryWriter


class Writer:
  """Writes metrics; only the first process has files.

  A run that goes on drops the lines of steps that it will do again.
  """

  def __init__(self, workdir: Path, step: int):
    """Opens the files of a run that begins or goes on at a step."""
    self._file = self._board = None
    if jax.process_index() == 0:
      path = workdir / "metrics.jsonl"
      _drop_after(path, step)
      self._file = path.open("a", encoding="utf-8")
      self._board = SummaryWriter(
        str(workdir / "tensorboard"), purge_step=step + 1
      )

  def write(
    self, step: int, metrics: dict[str, float], sample: str = ""
  ) -> None:
    """One line, and one point per curve."""
    if self._file is None or self._board is None:
      return
    # JSON has no NaN.
    known = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
    entry = {"step": step, **known} | ({"sample": sample} if sample else {})
    self._file.write(json.dumps(entry) + "\n")
    self._file.flush()
    for name, value in metrics.items():
      self._board.add_scalar(name, value, step)
    if sample:
      self._board.add_text("sample", sample, step)
    self._board.flush()

  def close(self) -> None:
    """Closes the files."""
    if self._file is not None and self._board is not None:
      self._board.close()
      self._file.close()


def say(text: str) -> None:
  """A line on stderr, beside the progress bar, from the first process."""
  if jax.process_index() == 0:
    tqdm.tqdm.write(text, file=sys.stderr)


def memory_gib() -> float:
  """Largest memory so far: of the device, or of the process on a CPU."""
  stats: Any = jax.local_devices()[0].memory_stats()
  if stats and "peak_bytes_in_use" in stats:
    return stats["peak_bytes_in_use"] / 2**30
  size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return size / 2**30 if sys.platform == "darwin" else size / 2**20


def _drop_after(path: Path, step: int) -> None:
  """Takes the lines of later steps, and one that is cut short, out of a file."""
  if not path.exists():
    return
  lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
  kept = [line for line in lines if _is_before(line, step)]
  if len(kept) < len(lines):
    new = path.with_suffix(".new")
    new.write_text("".join(kept), encoding="utf-8")
    new.rename(path)


def _is_before(line: str, step: int) -> bool:
  if not line.strip():
    return True
  try:
    return line.endswith("\n") and json.loads(line)["step"] <= step
  except (ValueError, KeyError, TypeError):
    return False
