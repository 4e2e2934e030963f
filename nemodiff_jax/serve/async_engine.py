"""The engine behind asyncio: one thread steps it, every call has a queue.

The queues are bounded: a call whose reader falls behind is cancelled before it
holds memory. Of the engine itself only its own thread calls anything.
"""

import asyncio
import collections
import concurrent.futures
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from typing import Any

from nemodiff_jax.serve.contract import Engine, Event, Job
from nemodiff_jax.serve.errors import Refusal
from nemodiff_jax.serve.metrics import Metrics

MAX_HELD = 4096  # Tokens per job that a reader may be behind.
_DRAIN_POLL = 0.02  # Seconds.
_STOP_SECONDS = 5.0


class Stream:
  """What becomes of the jobs of a call; `close` cancels what has not ended."""

  def __init__(self, drop: Callable[["Stream"], None], count: int):
    """A stream of `count` jobs; only AsyncEngine makes them."""
    self._drop = drop
    self._left = set(range(count))
    self._most = MAX_HELD * count
    self._held = 0
    self._events: collections.deque[tuple[int, Event] | Refusal] = (
      collections.deque()
    )
    self._ready = asyncio.Event()

  async def events(self) -> AsyncIterator[tuple[int, Event]]:
    """Yields (which job, event) until every job has ended.

    Raises:
      Refusal: what ended the call before that.
    """
    while self._left or self._events:
      while not self._events:
        self._ready.clear()
        await self._ready.wait()
      item = self._events.popleft()
      if isinstance(item, Refusal):
        raise item
      self._held -= len(item[1].token_ids)
      yield item

  def close(self) -> None:
    """Cancels what has not ended."""
    if self._left:
      self._left.clear()
      self._drop(self)

  def abort(self) -> None:
    """Ends what has not ended; the reader is told."""
    for index in sorted(self._left):
      self._events.append((index, Event(None, finish_reason="abort")))
    self._ready.set()
    self.close()

  def put(self, item: tuple[int, Event] | Refusal) -> None:
    """Adds an event, or what ends the call; in the loop's thread."""
    if not self._left:
      return
    if isinstance(item, Refusal):
      self._left.clear()
    else:
      index, event = item
      self._held += len(event.token_ids)
      if event.finish_reason is not None:
        self._left.discard(index)
      if self._left and self._held > self._most:
        self.close()
        self._events.clear()
        item = Refusal("the client reads too slowly.", status=408)
    self._events.append(item)
    self._ready.set()


class AsyncEngine:
  """Runs an engine in a thread of its own, for one event loop.

  Attributes:
    engine: that is run.
    draining: whether no more jobs are taken.
    failed: whether a step has raised.
  """

  def __init__(self, engine: Engine, metrics: Metrics):
    """Starts the thread, in which the metrics are told everything."""
    self.engine = engine
    self.draining = False
    self.failed = False
    self._metrics = metrics
    self._loop = asyncio.get_running_loop()
    self._inbox: collections.deque[Callable[[], Any]] = collections.deque()
    self._wake = threading.Condition()
    self._jobs: dict[Hashable, tuple[Stream, int]] = {}
    self._stopping = False
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  @property
  def running(self) -> int:
    """Jobs that have not ended."""
    return len(self._jobs)

  async def submit(self, jobs: Sequence[Job]) -> Stream:
    """Hands the jobs of a call to the engine: all of them or none.

    Raises:
      UserError: the engine refuses one; Refusal (503): no more are taken.
    """
    if self.draining or self.failed:
      raise Refusal("the server takes no more requests.", status=503)
    stream = Stream(self._drop, len(jobs))

    def enter() -> None:
      try:
        for i, job in enumerate(jobs):
          request = self.engine.submit(job)
          self._jobs[request] = stream, i
          self._metrics.submitted(request, job)
      except BaseException:
        self._leave(stream)
        raise

    try:
      await self.call(enter)
    except asyncio.CancelledError:
      self._drop(stream)
      raise
    return stream

  async def call(self, function: Callable[[], Any]) -> Any:
    """The result of a function that the engine's thread runs between steps."""
    done: concurrent.futures.Future = concurrent.futures.Future()

    def run() -> None:
      if not done.set_running_or_notify_cancel():
        return
      try:
        done.set_result(function())
      except BaseException as e:  # The caller's to handle, whatever it is.
        done.set_exception(e)

    self._post(run)
    return await asyncio.wrap_future(done)

  async def drain(self, seconds: float) -> None:
    """Takes no more jobs, waits for those there are, then cancels the rest."""
    self.draining = True
    end = time.monotonic() + seconds
    while self._jobs and time.monotonic() < end:
      await asyncio.sleep(_DRAIN_POLL)
    if self._jobs:
      await self.call(self._cancel_all)

  def stop(self) -> None:
    """Ends the thread, if it is not in a long step; calls are told so."""
    self._stopping = True
    self._post(self._cancel_all)
    self._thread.join(_STOP_SECONDS)

  def _drop(self, stream: Stream) -> None:
    self._post(lambda: self._leave(stream))

  def _leave(self, stream: Stream) -> None:
    for request in [r for r, (s, _) in self._jobs.items() if s is stream]:
      del self._jobs[request]
      self._cancel(request)

  def _cancel(self, request: Hashable) -> None:
    self.engine.cancel(request)
    self._metrics.cancelled(request)

  def _cancel_all(self) -> None:
    for request in self._jobs:
      self._cancel(request)
    self._fail("the server has ended.", 503)

  def _post(self, run: Callable[[], Any]) -> None:
    with self._wake:
      self._inbox.append(run)
      self._wake.notify()

  def _run(self) -> None:
    while True:
      with self._wake:
        while not (self._inbox or self._stopping or self._busy()):
          self._wake.wait()
        todo, self._inbox = self._inbox, collections.deque()
      for run in todo:
        run()
      if self._stopping:
        return
      if self._busy():
        self._step()

  def _busy(self) -> bool:
    return not self.failed and self.engine.busy()

  def _step(self) -> None:
    try:
      events = list(self.engine.step())
      self._metrics.events(events)
    except Exception:
      logging.exception("the engine's step failed")
      self.failed = True
      self._fail("the engine failed; the server's log says why.", 500)
      return
    told = []
    for event in events:
      if event.request not in self._jobs:
        continue
      stream, index = self._jobs[event.request]
      if event.finish_reason is not None:
        del self._jobs[event.request]
      told.append((stream, (index, event)))
    self._tell(told)

  def _fail(self, message: str, status: int) -> None:
    streams = {stream for stream, _ in self._jobs.values()}
    self._jobs.clear()
    self._tell([(s, Refusal(message, status=status)) for s in streams])

  def _tell(self, told: list[tuple[Stream, Any]]) -> None:
    """Hands everything over at once: waking the loop costs a system call."""

    def deliver() -> None:
      for stream, item in told:
        stream.put(item)

    if told and not self._loop.is_closed():
      self._loop.call_soon_threadsafe(deliver)
