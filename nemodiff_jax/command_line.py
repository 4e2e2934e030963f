"""Flags as the commands take them: in either spelling, with names that help."""

import os
import sys
from collections.abc import Callable
from typing import Any

from absl import flags

from nemodiff_jax import __version__
from nemodiff_jax.errors import nearest

_HELP = ("-h", "-help", "--help")
_OWN = ("nemodiff_jax", "train", "checkpoints_convert", "__main__")


def parse(given: list[str], main: Callable[..., Any]) -> list[str]:
  """Parses flags with dashes or underscores; returns what is no flag.

  --help (of the module of `main`) and --version print, and leave with 0.

  Raises:
    SystemExit: with 0 as above, with 2 for what does not parse.
  """
  if any(arg in _HELP for arg in given[1:]):
    _print_help(main)
    sys.exit(0)
  if "--version" in given[1:]:
    print(f"nemodiff {__version__}")
    sys.exit(0)
  try:
    return flags.FLAGS([_underscored(arg) for arg in given])
  except flags.UnrecognizedFlagError as e:
    name = e.flagname.partition("=")[0].replace("-", "_")
    message = f"unknown flag --{name}{nearest(name, _own_flags(), 'flag')}"
  except flags.Error as e:
    message = str(e).strip().splitlines()[-1]  # Of a traceback, what it is.
  print(f"error: {message}; --help lists the flags.", file=sys.stderr)
  sys.exit(2)


def _print_help(main: Callable[..., Any]) -> None:
  """The module's own words and its flags, by whatever name it was started."""
  module = sys.modules[main.__module__]
  # absl calls the module that was started by the name of its file.
  name = sys.argv[0] if main.__module__ == "__main__" else main.__module__
  try:
    print(f"{module.__doc__}\n{flags.FLAGS.module_help(name)}", flush=True)
  except BrokenPipeError:  # The reader has seen enough.
    drop_output()


def drop_output() -> None:
  """What is still in the buffer of standard output goes nowhere."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _underscored(arg: str) -> str:
  """--a-flag=value as --a_flag=value, and --no-a-flag, where that is a flag."""
  if not arg.startswith("--"):
    return arg
  dashed, *value = arg.split("=", 1)
  name = dashed.removeprefix("--").replace("-", "_")
  for spelled in (name, name.replace("no_", "no", 1)):
    if {spelled, spelled.removeprefix("no")} & {*flags.FLAGS}:
      return "=".join([f"--{spelled}", *value])
  return arg


def _own_flags() -> list[str]:
  """Names of the project's flags, not of the libraries it uses."""
  return [
    flag.name
    for module, found in flags.FLAGS.flags_by_module_dict().items()
    if module.startswith((*_OWN, sys.argv[0]))
    for flag in found
  ]
