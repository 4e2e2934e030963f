"""SIGTERM and Ctrl-C: a run saves, and then leaves."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Stopped(Exception):
  """A run that was asked to stop, and has saved.

  Attributes:
    number: of the signal; a shell expects exit status 128 + number.
  """

  def __init__(self, message: str, number: int):
    super().__init__(message)
    self.number = number


class Stop:
  """Listens for SIGTERM and Ctrl-C while it is entered.

  The first signal is noted, to be asked for between two steps; a second one
  ends the process at once. Many processes agree on the step to stop at
  through JAX, whose own handler of SIGTERM then stays in place.

  Attributes:
    number: of the signal that came, None: none did.
  """

  def __init__(self):
    self.number: int | None = None
    self._before: dict[int, Any] = {}

  def __enter__(self) -> "Stop":
    if threading.current_thread() is threading.main_thread():
      alone = jax.process_count() == 1
      for number in (signal.SIGINT, *(signal.SIGTERM,) * alone):
        self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_: Any) -> None:
    self._restore()

  def asked(self, step: int) -> bool:
    """Whether the run should stop after this step; the same on every process."""
    if jax.process_count() == 1:
      return self.number is not None
    reached = multihost_utils.reached_preemption_sync_point(step)
    if reached and self.number is None:
      self.number = signal.SIGTERM
    return reached

  def _note(self, number: int, frame: FrameType | None) -> None:
    self.number = number
    self._restore()
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)  # JAX tells the others.

  def _restore(self) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before.clear()
