"""run.json: which run a workdir belongs to, and what may change at a resume."""

import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import jax
import ml_collections

from nemodiff_jax import __version__
from nemodiff_jax.errors import UserError
from train.configs import base
from train.settings import flatten
from train.sources import source_paths

RECORD = "run.json"
# May change when a run goes on: they watch it, save it, place it on a machine,
# or say how long it lasts.
_FREE = (
  "steps",
  "accumulate",
  "remat",
  "chunk",
  "log_every",
  "max_bad_steps",
  "optimizer.decay",
  "optimizer.final_lr",
  "mesh.",
  "data.on_error",
  "validation.",
  "eval.",
  "checkpoint.",
)


def read_run(workdir: Path) -> dict[str, Any] | None:
  """What run.json holds; None: there is none yet.

  Raises:
    UserError: it is not the record of a run.
  """
  path = workdir / RECORD
  if not path.exists():
    return None
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
    # Keys of later versions have their defaults.
    found["config"] = flatten(base.get_config()) | found["config"]
    return found | {"init_from": found["init_from"]}
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise UserError(f"{path}: not the record of a run ({e!r}).") from e


def check_run(
  workdir: Path,
  found: dict[str, Any] | None,
  config: ml_collections.ConfigDict,
  init_from: str | None,
) -> int:
  """Checks that a workdir is new, or of this run.

  Returns:
    The run's streams of data: they stay as they were when it began, and so do
    its rows; config.data.shards need only divide them.

  Raises:
    UserError: the workdir belongs to another run.
  """
  if found is None:
    return config.data.shards
  before = found["config"] | {"init_from": found["init_from"]}
  now = flatten(config) | {"init_from": init_from}
  streams = before.pop("data.shards")
  shards = now.pop("data.shards")
  changed = [
    f"{name} was {before.get(name)!r}, now {value!r}"
    for name, value in now.items()
    if not _same(name, value, before.get(name)) and not name.startswith(_FREE)
  ]
  if streams % shards:
    changed.append(
      f"data.shards was {streams}, now {shards}, which does not divide it"
    )
  if changed:
    changed.sort(key=lambda what: not what.startswith("objective"))
    raise UserError(
      f"{workdir} holds another run ({'; '.join(changed[:4])}); give another"
      " --workdir, or the settings it was started with."
    )
  return streams


def write_run(
  workdir: Path,
  found: dict[str, Any] | None,
  config: ml_collections.ConfigDict,
  init_from: str | None,
  step: int,
) -> None:
  """Writes run.json into a new workdir, or adds to it that the run goes on.

  Args:
    workdir: this run's, from then on.
    found: what `read_run` found there.
    config: of this start.
    init_from: where the model came from.
    step: where this start begins.

  Raises:
    UserError: it cannot be written.
  """
  if jax.process_index() > 0:
    return
  path, flat = workdir / RECORD, flatten(config)
  if found is None:
    record = {
      "config": flat,
      "init_from": init_from,
      "seed": config.seed,
      **_machine(),
      "resumed": [],
    }
  else:
    changes = {k: v for k, v in flat.items() if v != found["config"].get(k)}
    again = {"step": step, "config": changes, **_machine()}
    record = found | {"resumed": [*found.get("resumed", ()), again]}
  try:
    new = path.with_suffix(".new")  # Others may be looking for the file.
    new.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    new.rename(path)
  except OSError as e:
    raise UserError(f"{path}: could not be written ({e}).") from e


def _same(name: str, a: Any, b: Any) -> bool:
  """Whether two values are one: a place may be spelt in several ways."""
  if a == b or not isinstance(a, str) or not isinstance(b, str):
    return a == b
  if name == "data.source":
    real = lambda x: [p.resolve() for p in source_paths(x)]
    return real(a) == real(b)
  real = lambda x: os.path.realpath(os.path.expanduser(x))
  return name == "init_from" and real(a) == real(b)


def _machine() -> dict[str, Any]:
  return {
    "commit": _commit(),
    "versions": {
      "nemodiff_jax": __version__,
      "jax": jax.__version__,
      "python": platform.python_version(),
    },
    "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "processes": jax.process_count(),
    "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
  }


def _commit() -> str | None:
  """The commit of the code, None outside a repository."""
  folder = Path(__file__).parent
  command = ["git", "rev-parse", "HEAD"]
  try:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
  except OSError:
    return None
  return done.stdout.strip() or None
