"""What the commands have in common as processes: flags in, exit codes out."""

import io
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TextIO

import jax
from absl import app, flags

from nemodiff_jax import signals
from nemodiff_jax.cli.flags import DEBUG
from nemodiff_jax.errors import UserError

_HELP = ("-h", "-help", "--help")


def console(main: Callable[[], int]) -> NoReturn:
  """Runs a command as a process of its own: see `run` and `signals.run`."""
  # What a terminal cannot show is no reason to stop.
  reconfigure_text(sys.stdout, "replace")

  def body() -> int:
    run(main)
    return 0

  signals.run(body)


def run(main: Callable[[], int], argv: list[str] | None = None) -> None:
  """Runs a command: parses flags, keeps compiled programs, reports errors.

  Exit codes: what `main` returns; 2 for a flag that does not parse and for a
  UserError; 130 for Ctrl-C.

  Raises:
    SystemExit: always, with the exit code.
  """
  jax.config.config_with_absl()
  backends = logging.getLogger("jax._src.xla_bridge")
  backends.setLevel(logging.WARNING)
  backends.addFilter(_concerns_this_machine)

  def parse(given: list[str]) -> list[str]:
    if any(arg in _HELP for arg in given[1:]):
      print(_help(main))
      sys.exit(0)
    try:
      return flags.FLAGS([_underscored(arg) for arg in given])
    except flags.Error as e:
      print(f"error: {e}; --help lists the flags.", file=sys.stderr)
      sys.exit(2)

  app.run(lambda rest: _guarded(main, rest), argv, flags_parser=parse)


def _underscored(arg: str) -> str:
  """--a-flag=value as --a_flag=value, where that is a flag."""
  dashed, *value = arg.split("=", 1)
  name = dashed.lstrip("-").replace("-", "_")
  if dashed.startswith("--") and {name, name.removeprefix("no")} & {
    *flags.FLAGS
  }:
    return "=".join([f"--{name}", *value])
  return arg


def _guarded(main: Callable[[], int], rest: list[str]) -> int:
  try:
    if len(rest) > 1:
      raise UserError(f"expected flags only, got {rest[1:]}.")
    keep_compiled_programs()
    code = main()
    sys.stdout.flush()
    return code
  except UserError as e:
    return _failed(str(e))
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    return _failed(
      "out of memory; use a smaller --batch_size, --max_new_tokens or"
      f" --block_length ({str(e).splitlines()[0]})"
    )
  except BrokenPipeError:  # The reader has seen enough.
    _drop_output()
    return 0
  except OSError as e:
    code = _failed(str(e))
    _drop_output()
    return code
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    return 130


def _failed(message: str) -> int:
  if DEBUG.value:
    traceback.print_exc()
  print(f"error: {message}", file=sys.stderr)
  return 2


def _help(main: Callable[[], int]) -> str:
  """The module's own words and its flags, by whatever name it was started."""
  module = sys.modules[main.__module__]
  # absl calls the module that was started by the name of its file.
  name = sys.argv[0] if main.__module__ == "__main__" else main.__module__
  return f"{module.__doc__}\n{flags.FLAGS.module_help(name)}"


def _drop_output() -> None:
  """What is still in the buffer of standard output goes nowhere."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def reconfigure_text(stream: TextIO, errors: str) -> None:
  """What a stream does with characters or bytes that it cannot convert."""
  if isinstance(stream, io.TextIOWrapper):
    stream.reconfigure(errors=errors)


def keep_compiled_programs() -> None:
  """Caches compiled programs on disk, unless JAX is told where already."""
  if jax.config.jax_compilation_cache_dir is not None:
    return
  root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  folder = Path(root) / "nemodiff_jax" / "compiled"
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _concerns_this_machine(record: logging.LogRecord) -> bool:
  """Whether to show it: a CUDA plugin without a GPU only compiles for one."""
  gpu = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()
  return gpu or "xla_cuda" not in record.getMessage()
