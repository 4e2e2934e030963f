"""What a run tells: metrics.jsonl, TensorBoard, run.json, speed and memory."""

import json
import math
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import ml_collections
import tqdm
from tensorboardX import SummaryWriter

from nemodiff_jax import __version__
from nemodiff_jax.errors import UserError
from nemodiff_jax.nn.config import ModelConfig
from train.settings import flatten

RECORD = "run.json"
# May change when a run goes on: they only watch, save or speed it up.
_FREE = (
  "log_every",
  "eval.",
  "checkpoint.",
  "mesh.",
  "max_bad_steps",
  "data.on",
)
# bfloat16 operations per second of a device, dense, by its makers' data sheets.
PEAK = {
  "A100": 312e12,
  "H100": 989e12,
  "H200": 989e12,
  "B200": 2250e12,
}


class Writer:
  """Writes metrics of the first process.

  The others call it too, to no effect.
  """

  def __init__(self, workdir: Path):
    self._file = self._board = None
    if jax.process_index() == 0:
      self._file = (workdir / "metrics.jsonl").open("a", encoding="utf-8")
      self._board = SummaryWriter(str(workdir / "tensorboard"))

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


def check_run(
  workdir: Path, config: ml_collections.ConfigDict, init_from: str | None
) -> None:
  """Checks that a workdir is new, or of this run.

  Raises:
    UserError: the workdir belongs to another run.
  """
  path = workdir / RECORD
  if not path.exists():
    return
  try:
    old = json.loads(path.read_text(encoding="utf-8"))
    before = old["config"] | {k: old[k] for k in ("init_from", "processes")}
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise UserError(f"{path}: not the record of a run ({e!r}).") from e
  now = flatten(config) | {
    "init_from": init_from,
    "processes": jax.process_count(),
  }
  changed = [
    f"{name} was {before.get(name)!r}, now {value!r}"
    for name, value in now.items()
    if value != before.get(name) and not name.startswith(_FREE)
  ]
  if changed:
    raise UserError(
      f"{workdir} holds another run ({'; '.join(changed[:4])}); give another"
      " --workdir, or the settings it was started with."
    )


def write_run(
  workdir: Path, config: ml_collections.ConfigDict, init_from: str | None
) -> None:
  """Writes run.json into a new workdir; from then on it is this run's.

  Raises:
    UserError: it cannot be written.
  """
  path = workdir / RECORD
  if path.exists() or jax.process_index() > 0:
    return
  record = {
    "config": flatten(config),
    "init_from": init_from,
    "processes": jax.process_count(),
    "seed": config.seed,
    "commit": _commit(),
    "versions": {
      "nemodiff_jax": __version__,
      "jax": jax.__version__,
      "python": platform.python_version(),
    },
    "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
  }
  try:
    new = path.with_suffix(".new")  # Others may be looking for the file.
    new.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    new.rename(path)
  except OSError as e:
    raise UserError(f"{path}: could not be written ({e}).") from e


def model_operations(config: ModelConfig, length: int, noisy: int) -> float:
  """Operations of a joint or causal step per row, without recomputation.

  Two per weight and token of every matrix product, and of the scores and values
  that a query can see; three times that for forward and backward. The embedding
  is a lookup and counts nothing.
  """
  c = config
  matrices = c.num_layers * (
    2 * c.hidden_size * c.head_dim * (c.num_heads + c.num_kv_heads)
    + 3 * c.hidden_size * c.intermediate_size
  )
  matrices += c.hidden_size * c.vocab_size
  seen = length * length / 2 + noisy * length / 2
  attention = 4 * c.num_layers * c.num_heads * c.head_dim * seen
  forward = 2 * matrices * (length + noisy) + attention
  return 3 * forward


def peak_operations() -> float | None:
  """Of one device per second, None where it is not known."""
  kind = jax.devices()[0].device_kind
  return next((peak for name, peak in PEAK.items() if name in kind), None)


def memory_gib() -> float:
  """Largest memory so far: of the device, or of the process on a CPU."""
  stats: Any = jax.local_devices()[0].memory_stats()
  if stats and "peak_bytes_in_use" in stats:
    return stats["peak_bytes_in_use"] / 2**30
  size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return size / 2**30 if sys.platform == "darwin" else size / 2**20


def _commit() -> str | None:
  """The commit of the code, None outside a repository."""
  folder = Path(__file__).parent
  command = ["git", "rev-parse", "HEAD"]
  try:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
  except OSError:
    return None
  return done.stdout.strip() or None
