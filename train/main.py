"""Trains a model, or goes on where a run stopped.

    nemodiff-train --config=tiny --workdir=DIR
        [--init_from=CHECKPOINT] [--export=DIR] [--config.key=value ...]

A config is a Python file, or the name of one of train/configs: ar,
ar_to_diffusion_8b, drafter, sft, tiny; behind a colon, what the file itself
takes (sft:small). docs/training.md describes the keys.
"""

import os
import signal
import sys
from pathlib import Path

import jax
from absl import app, flags, logging

from nemodiff_jax import backend, command_line
from nemodiff_jax.errors import UserError, nearest

try:
  from ml_collections import config_flags

  from train import loop, settings
  from train.configs import base
  from train.signals import Stopped
except ImportError as e:
  print(
    f"error: training needs its extra ({e}): pip install"
    " 'nemodiff-jax[train]'.",
    file=sys.stderr,
  )
  sys.exit(2)

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The run: a Python file, or a name above."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Checkpoints and metrics.", required=True
)
_INIT = flags.DEFINE_string(
  "init_from", None, "Checkpoint to start from: a folder or a hub name."
)
_EXPORT = flags.DEFINE_string(
  "export", None, "At the end, write the released layout to this folder."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "host:port of process 0, for a run of many processes."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "How many there are.")
_PROCESS = flags.DEFINE_integer("process", None, "Which one this is, from 0.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
_CONFIGS = Path(base.__file__).parent
# How many processes a launcher started: of Slurm's srun, of Open MPI.
_LAUNCHED = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def main(_: list[str]) -> None:
  """Runs the training."""
  logging.set_verbosity(logging.WARNING)
  backend.prepare()
  try:
    join_processes()
    target = None if _EXPORT.value is None else Path(_EXPORT.value)
    loop.train(_CONFIG.value, Path(_WORKDIR.value), _INIT.value, target)
  except UserError as e:
    if _DEBUG.value:
      raise
    sys.exit(_fail(str(e)))
  except Stopped as e:
    print(f"{e}.", file=sys.stderr)
    sys.exit(128 + e.number)
  except KeyboardInterrupt:
    print("stopped; the same command begins again.", file=sys.stderr)
    sys.exit(128 + signal.SIGINT)


def join_processes() -> None:
  """Joins the other processes of a run, by the flags or the cluster's words.

  A launcher (Slurm, Open MPI) that started more than one process says so in the
  environment, and JAX finds the rest there. A task that is alone on its node
  takes all of the node's GPUs, where JAX would take one.

  Raises:
    UserError: the others could not be found.
  """
  try:
    if _COORDINATOR.value is not None:
      jax.distributed.initialize(
        _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
      )
    elif any(int(os.environ.get(name) or 1) > 1 for name in _LAUNCHED):
      alone = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
      visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
      own = list(range(len(visible.split(",")))) if visible else None
      jax.distributed.initialize(
        local_device_ids=own if alone.partition("(")[0] == "1" else None
      )
  except (ValueError, RuntimeError) as e:
    raise UserError(
      f"the processes of this run could not be joined ({e}); give"
      " --coordinator, --processes and --process."
    ) from e


def _fail(message: str) -> int:
  print(f"error: {message}", file=sys.stderr)
  return 2


def parse(argv: list[str]) -> list[str]:
  """Flags; what is wrong with them is an error like those of the run."""
  known = settings.flatten(base.get_config())
  argv = list(argv)
  for i, arg in enumerate(argv):
    name, equals, value = arg.partition("=")
    if name == "--config":
      at = i if equals else min(i + 1, len(argv) - 1)
      file = _config_file(value if equals else argv[at])
      argv[at] = name + equals + file if equals else file
    key = name.removeprefix("--config.")
    if key != name and key not in known:
      near = nearest(key, known, "key")
      sys.exit(_fail(f"config: unknown key {key!r}{near}."))
  # Not at import: flags are one table for all commands of a process.
  flags.mark_flag_as_required("config")
  try:
    return command_line.parse(argv, main)
  except ValueError as e:
    # A config file's own error comes with its traceback.
    sys.exit(_fail(str(e).strip().splitlines()[-1]))


def _config_file(given: str) -> str:
  """The file of a config that is given by its path or its name."""
  name, colon, argument = given.partition(":")
  packaged = _CONFIGS / f"{name}.py"
  if Path(name).is_file():
    return given
  if name.isidentifier() and packaged.is_file():
    return str(packaged) + colon + argument
  names = sorted(p.stem for p in _CONFIGS.glob("[!_]*.py"))
  sys.exit(
    _fail(
      f"--config: there is no file {name!r}; expected a Python file, or one of"
      f" {', '.join(n for n in names if n not in ('base', 'small'))}."
    )
  )


def console() -> None:
  """Entry point of the installed command."""
  app.run(main, flags_parser=parse)


if __name__ == "__main__":
  console()
