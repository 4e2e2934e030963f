"""Who is admitted, and which part of its prompt is read next."""

from collections.abc import Callable

from nemodiff_jax.serve import plan
from nemodiff_jax.serve.chunks import first_part
from nemodiff_jax.serve.pages import PagePool
from nemodiff_jax.serve.queue import WaitingQueue
from nemodiff_jax.serve.request import Chunk, Phase, Request
from nemodiff_jax.serve.slots import Slots
from nemodiff_jax.serve.widths import Widths


class PromptReader:
  """Reads prompts one after the other, in chunks.

  Attributes:
    row: the request whose prompt is read in part; None: none is.
  """

  def __init__(
    self,
    pool: PagePool,
    queue: WaitingQueue,
    slots: Slots,
    rows: int,
    lacks: Callable[[Request, int], int],
    block: int,
    widths: Widths | None,
    short: int,
  ):
    """Starts with nothing to read.

    Args:
      pool: the pages.
      queue: requests that wait.
      slots: where rows go that are read.
      rows: slots, at most.
      lacks: pages that a row needs besides its own, for so many passes more.
      block: C, positions that a pass writes to.
      widths: chooses the width of each cycle; None: all of the block.
      short: tokens of a prompt that is read in one visit.
    """
    self.row: Request | None = None
    self._pool = pool
    self._queue = queue
    self._slots = slots
    self._rows = rows
    self._lacks = lacks
    self._block = block
    self._widths = widths
    self._short = short

  def read(self, tokens: int, passes: int) -> list[Chunk]:
    """The chunks of a visit: prompts one after the other, in order.

    Args:
      tokens: that are read, at most, but for the end of the last short prompt.
      passes: of the visit, for which a row has to have its pages.
    """
    chunks: list[Chunk] = []
    while tokens > 0:
      row = self.row or self._admit(passes)
      if row is None:
        break
      start, unread = row.read, row.length - row.read
      short = 0 if row is self.row else self._short
      stop = start + first_part(unread, tokens, short)
      tokens -= stop - start
      row.read, self.row = stop, row
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
    admitted is not preempted at once. A row that was preempted is known again
    when the visits it took part in are read.
    """
    row = self._queue.first()
    if row is None or row.flying or len(self._slots) >= self._rows:
      return None
    limit = None if row.begun else row.reuse
    shared = self._pool.match(row.ids[: row.length], row.salt, limit)
    lacks = self._lacks(row, passes) - len(shared)
    most = lambda r: plan.pages_of(r.limit(self._block), self._pool.page)
    spare = sum(len(r.pages) < most(r) for r in self._slots)
    new = self._pool.allocate(lacks, shared, spare)
    if new is None:
      return None
    self._queue.remove(row)
    row.phase = Phase.READING
    row.pages = [*shared, *new]
    row.read = len(shared) * self._pool.page
    if not row.preemptions:
      row.reused = row.read
    return row

  def _start(self, row: Request) -> None:
    """The row has been read: it takes the first free slot."""
    self.row = None
    self._pool.share(row.pages, row.ids[: row.read], row.salt)
    row.phase, row.begun = Phase.RUNNING, True
    row.mid = row.mid and self._widths is None  # Else it drafts anew.
    self._slots.put(row)
