"""Compiled programs by name and sizes, made on demand or ahead of need."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

Key = tuple[Any, ...]  # A name, and the sizes that the program is made for.


class Programs:
  """Programs of an engine; each is compiled once.

  Attributes:
    seconds: that each took to compile.
    failed: programs that another thread could not compile.
    sealed: whether nothing may be compiled any more: a warm-up that forgot a
      program is a fault.
  """

  def __init__(self, lower: Callable[[Key], Any]):
    """Knows no program yet; `lower` makes one ready to compile, of its key."""
    self.seconds: dict[Key, float] = {}
    self.failed: set[Key] = set()
    self.sealed = False
    self._lower = lower
    self._ready: dict[Key, Any] = {}
    self._thread: threading.Thread | None = None

  def __contains__(self, key: Key) -> bool:
    return key in self._ready

  def __len__(self) -> int:
    return len(self._ready)

  @property
  def busy(self) -> bool:
    """Whether a program is being compiled by another thread."""
    return self._thread is not None and self._thread.is_alive()

  def get(self, key: Key) -> Any:
    """The compiled program, at once if it is there.

    Raises:
      RuntimeError: it is not, and nothing may be compiled any more.
    """
    if key not in self._ready:
      if self.sealed:
        raise RuntimeError(f"{key} should have been compiled by the warm-up.")
      if self._thread is not None:  # It may be the one.
        self._thread.join()
      if key not in self._ready:
        self._compile(key)
    return self._ready[key]

  def later(self, key: Key) -> None:
    """Compiles a program in another thread, unless one is compiled there."""
    if key in self._ready or self.busy or self.sealed:
      return
    self._thread = threading.Thread(target=self._try, args=(key,))
    self._thread.start()

  def _try(self, key: Key) -> None:
    try:
      self._compile(key)
    except Exception:  # `get` tells of it, if it happens again.
      logging.exception("%s could not be compiled", key)
      self.failed.add(key)

  def _compile(self, key: Key) -> None:
    start = time.perf_counter()
    program = self._lower(key).compile()
    self.seconds[key] = time.perf_counter() - start
    self._ready[key] = program
