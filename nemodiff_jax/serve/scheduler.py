"""Who is read, who runs, who waits: what the device does next.

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
from nemodiff_jax.serve.queue import WaitingQueue
from nemodiff_jax.serve.request import Chunk, Phase, Progress, Request, Visit
from nemodiff_jax.serve.slots import Slots
from nemodiff_jax.serve.widths import Widths


class Scheduler:
  """Admission, chunks of prompts, pages, preemption, slots.

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
    self._reading: Request | None = None
    self._flight: deque[Visit] = deque()

  @property
  def running(self) -> int:
    """Rows that have a slot."""
    return len(self._slots)

  @property
  def held(self) -> list[Request]:
    """Rows that are read or run, those that hold pages."""
    return [*self._slots, *filter(None, [self._reading])]

  @property
  def watched(self) -> int:
    """Rows that run, if somebody waits for the next token of one; else 0."""
    return self.running if any(row.watched for row in self._slots) else 0

  @property
  def unread(self) -> int:
    """Requests whose prompts wait to be read, as far as slots are free."""
    waiting = len(self.queue) + (self._reading is not None)
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
    chunks = self._read_prompts(passes)
    active = self._active()
    passes = min(passes, self._pace.passes(active))
    if self._reading is not None:  # The rest of the prompt waits.
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
    if row is self._reading:
      self._reading = None
      known = row.read
    else:
      self._slots.remove(row)
      known = row.length  # What was emitted last is in no page.
    self.pool.release(row.pages, row.ids[:known], row.salt)
    row.pages, row.read = [], 0

  def _read_prompts(self, passes: int) -> list[Chunk]:
    """The chunks of this visit: prompts one after the other, in order."""
    budget, chunks = self.chunk, []
    while budget:
      row = self._reading or self._admit(passes)
      if row is None:
        break
      start, stop = row.read, min(row.read + budget, row.length)
      budget -= stop - start
      row.read, self._reading = stop, row
      last, parked = stop == row.length, row.begun
      redraft = last and row.mid and self._widths is not None
      if last:
        self._start(row)
        row.flying += not (row.ahead or parked)  # Its first token is awaited.
      slot = row.slot if last else None
      pages, resumes = tuple(row.pages), last and parked
      chunks.append(Chunk(row, start, stop, pages, slot, resumes, redraft))
    return chunks

  def _admit(self, passes: int) -> Request | None:
    """Gives pages to the request that is next, if there are enough.

    Each row that has not all of its pages could take one more, still: who was
    admitted is not preempted at once. A row that was preempted is known again when the visits
    it took part in are read.
    """
    row = self.queue.first()
    if row is None or row.flying or self.running >= self._rows:
      return None
    limit = None if row.begun else row.reuse
    shared = self.pool.match(row.ids[: row.length], row.salt, limit)
    lacks = self._lacks(row, passes) - len(shared)
    most = lambda r: plan.pages_of(r.limit(self._block), self.pool.page)
    spare = sum(len(r.pages) < most(r) for r in self._slots)
    new = self.pool.allocate(lacks, shared, spare)
    if new is None:
      return None
    self.queue.remove(row)
    row.phase = Phase.READING
    row.pages = [*shared, *new]
    row.read = len(shared) * self.pool.page
    if not row.preemptions:
      row.reused = row.read
    return row

  def _start(self, row: Request) -> None:
    """The row has been read: it takes the first free slot."""
    self._reading = None
    self.pool.share(row.pages, row.ids[: row.read], row.salt)
    row.phase, row.begun = Phase.RUNNING, True
    row.mid = row.mid and self._widths is None  # Else it drafts anew.
    self._slots.put(row)
