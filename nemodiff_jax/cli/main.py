"""What the commands have in common as processes: flags in, exit codes out."""

import functools
import io
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn, TextIO

import jax
from absl import app

from nemodiff_jax import backend, command_line, signals
from nemodiff_jax.cli.flags import DEBUG
from nemodiff_jax.errors import UserError


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
  backend.prepare()
  parse = functools.partial(command_line.parse, main=main)
  app.run(lambda rest: _guarded(main, rest), argv, flags_parser=parse)


def _guarded(main: Callable[[], int], rest: list[str]) -> int:
  try:
    if len(rest) > 1:
      raise UserError(f"expected flags only, got {rest[1:]}.")
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
    command_line.drop_output()
    return 0
  except OSError as e:
    code = _failed(str(e))
    command_line.drop_output()
    return code
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    return 130


def _failed(message: str) -> int:
  if DEBUG.value:
    traceback.print_exc()
  print(f"error: {message}", file=sys.stderr)
  return 2


def reconfigure_text(stream: TextIO, errors: str) -> None:
  """What a stream does with characters or bytes that it cannot convert."""
  if isinstance(stream, io.TextIOWrapper):
    stream.reconfigure(errors=errors)
