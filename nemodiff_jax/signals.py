"""Ctrl-C and SIGTERM end a command with 130 and 143, whatever it is doing.

XLA computes in threads of its own and goes on when Ctrl-C takes the main thread
out of its wait. Such a thread then wants the interpreter while that is being
taken down, is ended inside C++ code that does not expect it, and the process
aborts. So after a signal the process leaves without taking it down. And in a
compiler, which may work for minutes, no exception reaches the main thread; in a
callback one may be lost. So another thread leaves if the main thread does not.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

_ENDING = (signal.SIGINT, signal.SIGTERM)


def run(main: Callable[[], int], grace: float = 3.0) -> NoReturn:
  """Runs the body of a command in the main thread and leaves the process.

  Ctrl-C raises KeyboardInterrupt in `main` and SIGTERM SystemExit, so that it
  can clean up. A handler of its own for a signal is left to `main`.

  Args:
    main: returns the exit code, or raises SystemExit.
    grace: seconds after a signal at which the process leaves all the same.
  """
  reading, writing = os.pipe()
  os.set_blocking(writing, False)
  signal.signal(signal.SIGTERM, _leave)
  signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
  seen = threading.Event()
  threading.Thread(
    target=_watch, args=(reading, seen, grace), daemon=True
  ).start()
  try:
    code: int | str | None = main()
  except SystemExit as e:
    code = e.code
  except KeyboardInterrupt:
    code = 128 + signal.SIGINT
  # The other thread may not have had its turn yet.
  if not seen.is_set() and code not in [128 + n for n in _ENDING]:
    sys.exit(code)
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):  # Full, or closed.
      stream.flush()
  os._exit(code if isinstance(code, int) else 1)


def _leave(number: int, _) -> NoReturn:
  sys.exit(128 + number)


def _watch(reading: int, seen: threading.Event, grace: float) -> None:
  """Waits for signals, which Python notes here before the main thread runs."""
  while True:
    number = os.read(reading, 1)[0]
    if number not in _ENDING:
      continue
    seen.set()
    if signal.getsignal(number) in (_leave, signal.default_int_handler):
      time.sleep(grace)
      os._exit(128 + number)
