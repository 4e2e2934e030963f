"""Who runs, who waits: what the device does next.

The scheduler knows ids and counts only. Its caller dispatches each visit, and
gives back what came of it, both in order, with any number in flight between.
So a visit is planned from less than what the device has done: pages are there
for the most that could happen, and what is said of ended rows is dropped.

Pages and slots of a row that ends are handed on at once: the visits in flight
come first on the device, and what they write, later owners write over before
they read it.
"""

from collections import deque
from collections.abc import Sequence

from nemodiff_jax.errors import UserError
from nemodiff_jax.serve import plan
from nemodiff_jax.serve.pace import Pace, Ready
from nemodiff_jax.serve.pages import PagePool
from nemodiff_jax.serve.prompt_reader import PromptReader
from nemodiff_jax.serve.queue import WaitingQueue
from nemodiff_jax.serve.request import Phase, Progress, Request, Visit
from nemodiff_jax.serve.slots import Slots
from nemodiff_jax.serve.widths import Widths


class Scheduler:
  """Pages, preemption, slots, visits; `PromptReader` admits.

  Attributes:
    pool: the pages.
    queue: requests that wait, preempted ones included.
    preemptions: how often a row gave its pages to an older one.
    chunk: prompt tokens that the next visit may read.
  """

  def __init__(
    self,
    pool: PagePool,
    rows: int,
    *,
    block: int,
    cycle: int = 1,
    queue: int = 1024,
    chunk: int = 512,
    short: int = 0,
    passes: int = 8,
    widths: Widths | None = None,
  ):
    """Starts with nothing to do.

    Args:
      pool: the pages.
      rows: slots; as many requests are read or run at once.
      block: C, positions that a pass writes to, and a cycle commits at most.
      cycle: passes of the shortest cycle: 2 in linear_spec and diffusion.
      queue: requests that may wait.
      chunk: prompt tokens read per visit.
      short: tokens of a prompt that is read in one visit, whatever `chunk` is.
      passes: per visit at most, where nobody waits for a token.
      widths: chooses the width of each cycle; None: all of the block.
    """
    self.pool = pool
    self.queue = WaitingQueue(queue)
    self.preemptions = 0
    self._rows = rows
    self._block = block
    self.chunk = chunk
    self._pace = Pace(block, cycle, passes, widths)
    self._widths = widths
    self._arrivals = 0
    self._slots = Slots()
    self._prompts = PromptReader(
      pool, self.queue, self._slots, rows, self._lacks, block, widths, short
    )
    self._flight: deque[Visit] = deque()

  @property
  def running(self) -> int:
    """Rows that have a slot."""
    return len(self._slots)

  @property
  def held(self) -> list[Request]:
    """Rows that are read or run, those that hold pages."""
    return [*self._slots, *filter(None, [self._prompts.row])]

  @property
  def watched(self) -> int:
    """Rows that run, if somebody waits for the next token of one; else 0."""
    return self.running if any(row.watched for row in self._slots) else 0

  @property
  def unread(self) -> int:
    """Requests whose prompts wait to be read, as far as slots are free."""
    waiting = len(self.queue) + (self._prompts.row is not None)
    return min(waiting, self._rows - self.running)

  @property
  def flight(self) -> int:
    """Visits that were planned and not read."""
    return len(self._flight)

  def submit(self, request: Request) -> None:
    """Lets a new request wait for its turn.

    Raises:
      QueueFull: it can be sent again later.
      UserError: all pages of the pool would not hold it.
    """
    need = plan.pages_of(request.limit(self._block), self.pool.page)
    if need > self.pool.pages:
      raise UserError(
        f"prompt ({request.length} tokens) + max_new_tokens"
        f" ({request.max_new}) + a block ({self._block}) need {need} pages of"
        f" {self.pool.page} positions, but the cache pool has"
        f" {self.pool.pages}; shorten one of them, or give the pool more"
        " pages.",
        "too_long",
      )
    request.arrival = self._arrivals
    self.queue.add(request)
    self._arrivals += 1

  def end(self, request: Request) -> bool:
    """Ends a request, wherever it is; False if it had ended before.

    For a cancellation, a stop string: ends that the device does not see. What
    visits in flight do for the row is dropped.
    """
    if request.phase is Phase.ENDED:
      return False
    if request.phase is Phase.WAITING:
      self.queue.remove(request)
    else:
      self._leave(request)
    request.phase = Phase.ENDED
    if self._widths is not None:
      self._widths.forget(request)
    return True

  def plan(self, ready: Ready | None = None) -> Visit | None:
    """The next visit, to be dispatched behind those in flight.

    Args:
      ready: see `pace.Ready`; None: every program is compiled.

    Returns:
      None if there is nothing to do before a visit in flight is read, or a
      request comes.
    """
    parks, passes = self._grow(self._pace.passes(self._active()))
    chunks = self._prompts.read(self.chunk, passes)
    active = self._active()
    passes = min(passes, self._pace.passes(active))
    if self._prompts.row is not None:  # The rest of the prompt waits.
      passes = self._pace.cycle
    if not (active or chunks or parks):
      return None
    bucket, compiled = plan.bucket(len(self._slots), self._rows), None
    if ready is not None and active:
      bucket, compiled = ready(len(self._slots))
    width, most = self._pace.width(self._slots, active, bucket, compiled)
    passes = min(passes, most) if active else 0
    moves = self._slots.compact()
    rows = tuple(self._slots)
    visit = Visit(
      parks=tuple(parks),
      moves=tuple(moves),
      chunks=tuple(chunks),
      rows=rows,
      active=tuple(row.runs for row in rows),
      pages=tuple(tuple(row.pages) for row in rows),
      bucket=bucket,
      passes=passes,
      width=width,
    )
    for row in active:
      row.flying += passes
    self._flight.append(visit)
    return visit

  def read(
    self, visit: Visit, progress: Sequence[Progress]
  ) -> list[tuple[int, Request]]:
    """Takes what the oldest visit in flight did, one entry per slot.

    Returns:
      (slot, request) of the rows whose tokens count: they began or ran, and
      the host had not ended them. Those that the device has ended are ended by
      now.
    """
    if not self._flight or self._flight[0] is not visit:
      raise ValueError("visits should be read in the order of their plans.")
    self._flight.popleft()
    counting, begun = [], visit.begun
    for slot, row in enumerate(visit.rows):
      ran = visit.active[slot]
      if not ran and not (slot in begun and not row.ahead):
        continue
      row.flying -= visit.passes if ran else 1
      if row.phase is Phase.ENDED:
        continue
      counting.append((slot, row))
      done = progress[slot]
      row.ids += done.tokens
      row.length = done.length
      row.mid = done.mid
      if self._widths is not None:
        self._widths.observe_acceptance(row, visit.width, done.accepted)
      if done.ended:
        self.end(row)
    return counting

  def _active(self) -> list[Request]:
    return [row for row in self._slots if row.runs]

  def _lacks(self, row: Request, passes: int) -> int:
    """Pages that the row needs besides its own, for so many passes more."""
    return plan.lacks(
      row, passes, self._block, self._pace.cycle, self.pool.page
    )

  def _grow(self, passes: int) -> tuple[list[tuple[int, Request]], int]:
    """Pages ahead of need: (slots to park, passes that have their pages).

    The oldest rows get theirs first, of free and of cached pages. Where both
    are short, all run fewer passes; then the youngest row gives up its own.
    The oldest never does: the whole pool holds it.
    """
    holders = sorted(self.held, key=lambda row: row.order)
    if sum(self._lacks(r, passes) for r in holders) > self.pool.available:
      passes = self._pace.cycle
    parks, served = [], 0
    while served < len(holders):
      row = holders[served]
      lacks = self._lacks(row, passes)
      new = self.pool.allocate(lacks) if lacks else []
      if new is None:
        parks += self._preempt(holders.pop())
      else:
        row.pages += new
        served += 1
    return parks, passes

  def _preempt(self, row: Request) -> list[tuple[int, Request]]:
    """Takes the pages of a row, which waits again in its old place."""
    slot = row.slot
    self._leave(row)
    row.phase = Phase.WAITING
    row.preemptions += 1
    self.preemptions += 1
    self.queue.restore(row)
    return [(slot, row)] if slot >= 0 else []

  def _leave(self, row: Request) -> None:
    """Gives back the pages and the slot of a row that is read or runs."""
    if row is self._prompts.row:
      self._prompts.row = None
      known = row.read
    else:
      self._slots.remove(row)
      known = row.length  # What was emitted last is in no page.
    self.pool.release(row.pages, row.ids[:known], row.salt)
    row.pages, row.read = [], 0
