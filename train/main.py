"""Trains a model, or goes on where a run stopped.

python -m train.main --config=train/configs/tiny.py --workdir=DIR
    [--init_from=CHECKPOINT] [--export=DIR] [--config.key=value ...]
"""

import sys
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from nemodiff_jax.errors import UserError
from train import loop, settings
from train.configs import base

_CONFIG = config_flags.DEFINE_config_file("config", None, "Of the run.")
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
flags.mark_flag_as_required("config")
_EXAMPLE = "train/configs/tiny.py"


def main(_: list[str]) -> None:
  """Runs the training."""
  logging.set_verbosity(logging.WARNING)
  if _COORDINATOR.value is not None:
    jax.distributed.initialize(
      _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
    )
  try:
    target = None if _EXPORT.value is None else Path(_EXPORT.value)
    loop.train(_CONFIG.value, Path(_WORKDIR.value), _INIT.value, target)
  except UserError as e:
    if _DEBUG.value:
      raise
    sys.exit(_fail(str(e)))


def _fail(message: str) -> int:
  print(f"error: {message}", file=sys.stderr)
  return 2


def parse(argv: list[str]) -> list[str]:
  """Flags; what is wrong with them is an error like those of the run."""
  known = settings.flatten(base.get_config())
  for arg, following in zip(argv, [*argv[1:], ""], strict=True):
    name, _, value = arg.partition("=")
    file = Path((value or following).split(":")[0])
    if name == "--config" and not file.is_file():
      sys.exit(_fail(f"--config should be a file like {_EXAMPLE}, got {file}."))
    key = name.removeprefix("--config.")
    if key != name and key not in known:
      near = settings.near(key, known)
      sys.exit(_fail(f"config: unknown key {key!r}{near}."))
  try:
    return flags.FLAGS(argv)
  except (flags.Error, ValueError) as e:
    # A config file's own error comes with its traceback.
    sys.exit(_fail(str(e).strip().splitlines()[-1]))


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
