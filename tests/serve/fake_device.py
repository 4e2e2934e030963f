"""A device without arithmetic: a token is a hash of what the cache holds.

So a row whose pages were given away, overwritten, shared wrongly or read too
early gets other tokens than alone.
"""

import random
import zlib

from nemodiff_jax.serve.request import Phase, Progress, Request, Visit
from nemodiff_jax.serve.scheduler import Scheduler

EOS = 0


def token(prefix) -> int:
  """What follows these ids."""
  value = zlib.crc32(bytes(prefix))
  return EOS if value % 61 == 0 else 1 + value % 5


def accepted(prefix, block: int) -> int:
  """How many tokens of a block are right; often all of them."""
  value = zlib.crc32(bytes(prefix), 7)
  return block if value % 3 else 1 + value // 3 % block


def alone(request: Request) -> list[int]:
  """The ids of a request that nothing runs beside."""
  ids = list(request.prompt)
  while len(ids) < len(request.prompt) + request.max_new:
    ids.append(token(ids))
    if ids[-1] == EOS:
      break
  return ids


def passes_alone(request: Request, block: int, cycle: int) -> int:
  """Passes that its tokens take, if every cycle is as short as it may be."""
  ids, count = list(request.prompt), 0
  whole = alone(request)
  while len(ids) + 1 < len(whole):  # The last token known is in no page.
    ids = whole[: len(ids) + accepted(ids, block)]
    count += cycle
  return count


class Row:
  """What the device keeps of a row: some integers and a block."""

  def __init__(self, request: Request, last: int):
    self.request, self.last = request, last
    self.length, self.count = len(request.prompt), 0
    self.drafts = 0  # Draft passes of the cycle.
    self.ready = self.ended = False
    self.width = 0  # Of the draft.
    self.nfe = 0
    self.emit([last])

  def emit(self, tokens):
    """Tokens up to the end; they are `new` until the next pass."""
    self.new = []
    for x in tokens if self.request.max_new else ():
      self.new.append(x)
      self.count += 1
      self.ended = x == EOS or self.count == self.request.max_new
      if self.ended:
        return
    self.ended = not self.request.max_new


class Device:
  """Runs visits in the order of their dispatch, at once."""

  def __init__(self, pages: int, page: int, cycle: int, auto: bool, seed: int):
    self.memory = [[None] * page for _ in range(pages)]
    self.page, self.cycle, self.auto = page, cycle, auto
    self.rows: dict[int, Row] = {}
    self.parked: dict[Request, Row] = {}
    self.own: dict[Request, set[int]] = {}  # Positions that chunks read.
    self.nfe: dict[Request, int] = {}
    self.rng = random.Random(seed)
    self.filler = pages
    self.passes = 0

  def write(self, pages, position, value):
    page = pages[position // self.page] if self._in(pages, position) else None
    assert page is not None, f"the write at {position} is dropped"
    self.memory[page][position % self.page] = value

  def read(self, pages, length):
    assert length <= len(pages) * self.page
    return [
      self.memory[pages[i // self.page]][i % self.page] for i in range(length)
    ]

  def _in(self, pages, position):
    at = position // self.page
    return at < len(pages) and pages[at] != self.filler

  def run(self, visit: Visit) -> list[Progress]:
    """What the visit did, per slot."""
    for slot, request in visit.parks:
      row = self.rows.pop(slot)
      assert row.request is request
      self.parked[request] = row
    moved = {stop: self.rows.pop(start) for start, stop in visit.moves}
    self.rows |= moved
    emitted: dict[int, list[int]] = {i: [] for i in range(len(visit.rows))}
    for chunk in visit.chunks:
      self._chunk(chunk, emitted)
    self.rows = {i: self.rows[i] for i in range(len(visit.rows))}
    for slot, request in enumerate(visit.rows):
      assert self.rows[slot].request is request, "the slot is another's"
    cycles = self._passes(visit, emitted)
    self.nfe |= {row.request: row.nfe for row in self.rows.values()}
    return [
      Progress(
        emitted[i], row.length, row.ended, row.drafts > 0, cycles.get(i, ())
      )
      for i, row in sorted(self.rows.items())
    ]

  def _chunk(self, chunk, emitted):
    request = chunk.request
    ids = request.ids[: chunk.stop]
    assert self.read(chunk.pages, chunk.start) == ids[: chunk.start]
    own = self.own.setdefault(request, set())
    for position in range(chunk.start, chunk.stop):
      self.write(chunk.pages, position, ids[position])
      own.add(position)
    if chunk.slot is None:
      return
    if chunk.resumes:
      row = self.parked.pop(request)
      assert row.length == chunk.stop and not row.ended
      if chunk.redraft:
        assert self.auto and row.drafts
        row.drafts, row.ready = 0, False
    else:
      assert chunk.stop == len(request.prompt)
      if request.reuse is not None:
        assert own >= set(range(request.reuse, chunk.stop))
      row = Row(request, token(self.read(chunk.pages, chunk.stop)))
      emitted[chunk.slot] += row.new
    self.rows[chunk.slot] = row

  def _passes(self, visit, emitted):
    self.check_table(visit)
    runs = [self.rows[i] for i, on in enumerate(visit.active) if on]
    cycles = {i: [] for i, on in enumerate(visit.active) if on}
    inside = lambda: any(
      r.drafts for r in runs if r.request.aligned and not r.ended
    )
    before = sum(row.ended for row in runs)
    for _ in range(visit.passes):
      self.passes += 1
      for slot in cycles:
        row = self.rows[slot]
        if not row.ended:
          cycles[slot] += self._pass(row, visit.pages[slot], visit.width)
          emitted[slot] += row.new
      if not (self.auto and inside()):
        if sum(row.ended for row in runs) > before and self.rng.random() < 0.5:
          break  # It may end early where a row ends, between cycles.
    assert not (self.auto and inside())
    return cycles

  def _pass(self, row, pages, width) -> list[int]:
    """One pass of a row: tokens of the cycle that ends with it, if any."""
    row.new = []
    row.nfe += 1
    ids = self.read(pages, row.length)
    for position in range(row.length, row.length + width):
      self.write(pages, position, ("draft", row.request.arrival))
    if self.cycle == 2 and not row.ready and not (self.auto and width == 1):
      assert not row.drafts or row.width == width, "the width has changed"
      row.drafts, row.width = row.drafts + 1, width
      again = not row.request.aligned and zlib.crc32(bytes(ids), row.drafts) % 2
      row.ready = not again
      return []
    assert not row.drafts or row.width == width, "the width has changed"
    new = []
    for _ in range(accepted(ids, width)):
      self.write(pages, row.length, row.last)
      ids.append(row.last)
      row.last = token(ids)
      new.append(row.last)
      row.length += 1
    row.drafts, row.ready = 0, False
    row.emit(new)
    return [len(new)]

  def check_table(self, visit):
    """Nothing but the rows' pages; what is free drops writes."""
    table = visit.table(len(self.memory), self.filler)
    assert table.shape == (visit.bucket, len(self.memory))
    for slot, line in enumerate(table.tolist()):
      pages = visit.pages[slot] if slot < len(visit.rows) else ()
      assert line[: len(pages)] == list(pages)
      assert set(line[len(pages) :]) <= {self.filler}


def holders(scheduler: Scheduler, requests) -> list[Request]:
  """Requests that hold pages, the oldest first."""
  held = [r for r in requests if r.phase in (Phase.READING, Phase.RUNNING)]
  return sorted(held, key=lambda r: r.order)


def check_pages(scheduler: Scheduler, requests) -> None:
  """No page is lost, and no page that is written to has two owners."""
  pool, seen = scheduler.pool, {}
  for row in holders(scheduler, requests):
    for i, page in enumerate(row.pages):
      text = row.salt, tuple(row.ids[: (i + 1) * pool.page])
      whole = (row.length if row.begun else row.read) // pool.page
      if page in seen:
        assert i < whole and seen[page] == (i, True, text), page
      seen[page] = i, i < whole, text
  assert pool.used == len(seen)
  assert pool.free + pool.cached + len(seen) == pool.pages
