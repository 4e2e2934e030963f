"""A running server: the model, the engine, and calls that go through it."""

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from nemodiff_jax.serve.async_engine import AsyncEngine, Stream
from nemodiff_jax.serve.contract import Engine, Job
from nemodiff_jax.serve.errors import Refusal
from nemodiff_jax.serve.metrics import Metrics
from nemodiff_jax.serve.served import Served

T = TypeVar("T")
_READERS = 4  # Threads that read requests: templates, tokens, grammars.


class Service:
  """What the routes share.

  Attributes:
    metrics: counters since the start.
    started: seconds since the epoch.
    failure: why it will never be ready.
  """

  def __init__(self):
    """A service that is not ready yet."""
    self.metrics = Metrics()
    self.started = time.time()
    self.failure: BaseException | None = None
    self._served: Served | None = None
    self._engine: AsyncEngine | None = None
    self._readers = concurrent.futures.ThreadPoolExecutor(_READERS)
    self._compilers = concurrent.futures.ThreadPoolExecutor(1)
    self._named: dict[str, Stream | None] = {}

  def load(self, make: Callable[[], tuple[Served, Engine]]) -> None:
    """Makes it ready in a while: `make` runs in a thread of its own.

    What it raises becomes `failure`. The thread holds up nobody's end.
    """
    loop = asyncio.get_running_loop()

    def run() -> None:
      try:
        made = make()
      except BaseException as e:  # The main thread raises it again.
        self.failure = e
        return
      with contextlib.suppress(RuntimeError):  # The loop has ended meanwhile.
        loop.call_soon_threadsafe(self._start, *made)

    threading.Thread(target=run, daemon=True).start()

  def _start(self, served: Served, engine: Engine) -> None:
    self._served = served
    self._engine = AsyncEngine(engine, self.metrics)

  @property
  def ready(self) -> bool:
    """Whether requests are taken."""
    engine = self._engine
    return engine is not None and not (engine.draining or engine.failed)

  @property
  def served(self) -> Served:
    """The model; raises a Refusal (503) until it is loaded."""
    if self._served is None:
      raise Refusal("the model is being loaded.", status=503)
    return self._served

  @property
  def engine(self) -> AsyncEngine:
    """The engine; raises a Refusal (503) until it is there."""
    if self._engine is None:
      raise Refusal("the model is being loaded.", status=503)
    return self._engine

  async def read(self, function: Callable[[], T], slow: bool = False) -> T:
    """The result of a function in another thread; `slow` ones share one."""
    pool = self._compilers if slow else self._readers
    return await asyncio.get_running_loop().run_in_executor(pool, function)

  async def submit(
    self, jobs: Sequence[Job], rids: Sequence[str] = ()
  ) -> Stream:
    """Hands jobs to the engine; `rids` are names to abort them by.

    Raises:
      UserError: they cannot be served, or a name is that of a running call.
    """
    for i, rid in enumerate(rids):
      if rid in self._named or rid in rids[:i]:
        raise Refusal(f"rid {rid[:100]!r} is that of a running request.", "rid")
    self._named |= dict.fromkeys(rids)
    try:
      stream = await self.engine.submit(jobs)
    except BaseException:
      self.forget(rids)
      raise
    self._named |= dict.fromkeys(rids, stream)
    return stream

  def forget(self, rids: Sequence[str]) -> None:
    """The calls of these names have ended."""
    for rid in rids:
      self._named.pop(rid, None)

  def abort(self, rid: str | None) -> None:
    """Ends the call of a name; None: every call that has one."""
    for name, stream in list(self._named.items()):
      if stream is not None and rid in (None, name):
        stream.abort()

  async def drain(self, seconds: float) -> None:
    """Ends: what runs may go on for so long."""
    if self._engine is not None:
      await self._engine.drain(seconds)

  def close(self) -> None:
    """Ends the threads."""
    if self._engine is not None:
      self._engine.stop()
    self._readers.shutdown(wait=False, cancel_futures=True)
    self._compilers.shutdown(wait=False, cancel_futures=True)
