"""How far a job is: a bar on a terminal, else a line every half minute."""

import datetime
import sys
import threading
import time
from typing import Self

import tqdm

INTERVAL = 30.0  # Seconds between two lines.


class Progress:
  """Counts the outputs of a job; shows them on standard error meanwhile."""

  def __init__(self, prompts: int):
    self._total = prompts
    self._prompts = self._tokens = self._passes = 0
    self._begun = time.monotonic()
    self._bar = tqdm.tqdm(total=prompts, unit="prompt", disable=None)
    self._ended = threading.Event()

  def __enter__(self) -> Self:
    """Begins to show the progress."""
    if self._bar.disable:
      threading.Thread(target=self._tell, daemon=True).start()
    return self

  def __exit__(self, *_) -> None:
    """Shows no more of it."""
    self._ended.set()
    self._bar.close()

  def add(self, tokens: int, passes: int, prompts: int = 1) -> None:
    """Counts the output of a prompt, or of some."""
    self._prompts += prompts
    self._tokens += tokens
    self._passes += passes
    self._bar.update(prompts)

  def end(self, errors: int, lines: int, before: int = 0) -> int:
    """Says how the job went; returns its exit code: 3 with errors, else 0.

    Args:
      errors: lines that could not be served.
      lines: of the whole job.
      before: errors of earlier runs of the same job.
    """
    failed = before + errors
    if failed:
      print(
        f"{failed} of {lines} lines could not be served: see their 'error'",
        file=sys.stderr,
      )
    per_pass = self._tokens / self._passes if self._passes else 0.0
    print(
      f"{self._counts()}, {per_pass:.2f} tokens per forward, {errors} errors",
      file=sys.stderr,
    )
    return 3 if failed else 0

  def _counts(self) -> str:
    seconds = time.monotonic() - self._begun or 1e-9  # Of a coarse clock.
    return (
      f"{self._prompts} prompts, {self._tokens} tokens in {seconds:.1f} s:"
      f" {self._tokens / seconds:.1f} tok/s"
    )

  def _tell(self) -> None:
    while not self._ended.wait(INTERVAL):
      print(
        f"{self._counts()}{self._left()}; {self._total} in all",
        file=sys.stderr,
      )

  def _left(self) -> str:
    """How long the rest will take, at the pace so far."""
    if not self._prompts:
      return ""
    seconds = time.monotonic() - self._begun
    left = seconds / self._prompts * (self._total - self._prompts)
    return f", {datetime.timedelta(seconds=round(left))} left"
