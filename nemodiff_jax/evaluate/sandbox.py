"""Runs programs that a model wrote: alone, briefly, and harmless.

On Linux a program runs in namespaces of its own (see `jail.py`): it sees no
network, no process and no file but Python's and its own folder, which is in
memory. Its time, memory, processes and output are limited.
"""

import functools
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from nemodiff_jax.errors import UserError

SECONDS = 10.0  # Of the clock; half of it of the processor.
MEMORY = 512 * 2**20
PROCESSES = 4
DISK = 16 * 2**20
_OUTPUT = 2**20
_NO_JAIL = 97  # The exit code of jail.py.
_SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64")


def passes(program: str, *, isolated: bool = True) -> bool:
  """Whether a program runs to its last line without an error.

  A program that ends early, with whatever exit code, has not passed.

  Args:
    program: Python source; it holds its own tests.
    isolated: in namespaces; if not, only its resources are limited.

  Raises:
    UserError: this machine has no such namespaces.
  """
  code, output = run(program, isolated=isolated)
  if isolated and code == _NO_JAIL and (why := missing()):
    raise UserError(refusal(why))
  return code == 0 and output


def run(
  program: str, *, isolated: bool = True, seconds: float = SECONDS
) -> tuple[int, bool]:
  """(exit code, whether the last line was reached); -9 when out of time."""
  mark = secrets.token_hex(16)
  source = f"{program}\nprint({mark!r}, flush=True)\n"
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    (folder / "root").mkdir()
    (folder / "program.py").write_text(source, errors="replace")
    spec = json.dumps(_spec(folder, isolated, seconds))
    jail = Path(__file__).with_name("jail.py")
    with open(folder / "output", "w+b") as out:
      process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(jail), spec],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=out,
        cwd="/",
        start_new_session=True,
      )
      try:
        code = process.wait(seconds)
      except subprocess.TimeoutExpired:
        code = -signal.SIGKILL
      finally:
        # What it started goes with it: by namespace, or by session.
        _kill(process)
      out.seek(0)
      reached = mark.encode() in out.read().splitlines()
    return code, reached


def check(unsafe: bool) -> None:
  """Refuses programs where they cannot be isolated, unless `unsafe`.

  Raises:
    UserError: no namespaces on this machine.
  """
  if not unsafe and (why := missing()):
    raise UserError(refusal(why))


def refusal(why: str) -> str:
  """The text of a refusal."""
  return (
    "code tasks run programs that the model wrote, and this machine cannot"
    f" isolate them ({why}). Run them on Linux with user namespaces, or accept"
    " the risk with --unsafe_code."
  )


@functools.cache
def missing() -> str | None:
  """Why programs cannot be isolated here; None: they can."""
  if not sys.platform.startswith("linux"):
    return f"{sys.platform} has no namespaces"
  code, reached = run("pass", seconds=60)
  if code == 0 and reached:
    return None
  return f"Linux namespaces: a trial ended with exit code {code}"


def _spec(folder: Path, isolated: bool, seconds: float) -> dict:
  python = os.path.realpath(sys.executable)
  prefix = os.path.realpath(sys.base_prefix)
  shown = [p for p in _SYSTEM if os.path.lexists(p)]
  if not any(prefix == p or prefix.startswith(p + "/") for p in shown):
    shown.append(prefix)
  cpu = max(1, int(seconds / 2))
  return {
    "program": str(folder / "program.py"),
    "folder": str(folder),
    "root": str(folder / "root"),
    "isolated": isolated,
    "root_user": os.geteuid() == 0,
    "python": python,
    "shown": shown,
    "disk": DISK,
    "limits": {
      "RLIMIT_AS": MEMORY,
      "RLIMIT_CPU": cpu,
      "RLIMIT_FSIZE": _OUTPUT,
      "RLIMIT_CORE": 0,
      "RLIMIT_NOFILE": 64,
      # Unisolated, the limit would count the user's other processes.
      **({"RLIMIT_NPROC": PROCESSES} if isolated else {}),
    },
  }


def _kill(process: subprocess.Popen) -> None:
  try:
    os.killpg(process.pid, signal.SIGKILL)
  except ProcessLookupError:
    pass
  process.wait()
