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


class Row:
  """What the device keeps of a row."""

  def __init__(self, request: Request, last: int):
    self.request, self.last = request, last
    self.length, self.count = len(request.prompt), 0
    self.mid, self.ended = False, False
    self.emit([last])

  def emit(self, tokens):
    self.new = []
    for x in tokens:
      if self.count < self.request.max_new:
        self.new.append(x)
        self.count += 1
        if x == EOS:
          self.ended = True
          break
    self.ended |= self.count >= self.request.max_new


class Device:
  """Runs visits in the order of their dispatch, at once."""

  def __init__(self, pages: int, page: int, block: int, cycle: int, seed: int):
    self.memory = [[None] * page for _ in range(pages)]
    self.page, self.block, self.cycle = page, block, cycle
    self.rows: dict[int, Row] = {}
    self.parked: dict[Request, Row] = {}
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
    assert not any(slot in visit_rows(self.rows, visit) for slot in moved)
    self.rows |= moved
    emitted: dict[int, list[int]] = {i: [] for i in range(len(visit.rows))}
    for chunk in visit.chunks:
      self._chunk(chunk, emitted)
    self.rows = {i: self.rows[i] for i in range(len(visit.rows))}
    for slot, request in enumerate(visit.rows):
      assert self.rows[slot].request is request, "the slot is another's"
    self._passes(visit, emitted)
    return [
      Progress(emitted[i], row.length, row.ended, row.mid)
      for i, row in sorted(self.rows.items())
    ]

  def _chunk(self, chunk, emitted):
    request = chunk.request
    ids = request.ids[: chunk.stop]
    assert self.read(chunk.pages, chunk.start) == ids[: chunk.start]
    for position in range(chunk.start, chunk.stop):
      self.write(chunk.pages, position, ids[position])
    if chunk.slot is None:
      return
    if chunk.resumes:
      row = self.parked.pop(request)
      assert row.length == chunk.stop and not row.ended
    else:
      assert chunk.stop == len(request.prompt)
      row = Row(request, token(self.read(chunk.pages, chunk.stop)))
      emitted[chunk.slot] += row.new
    self.rows[chunk.slot] = row

  def _passes(self, visit, emitted):
    table = visit.table(len(self.memory), self.filler).tolist()
    assert len(table) == visit.bucket >= len(visit.rows)
    runs = [i for i, on in enumerate(visit.active) if on]
    before = sum(self.rows[i].ended for i in runs)
    for _ in range(visit.passes):
      self.passes += 1
      for slot in runs:
        if not self.rows[slot].ended:
          self._pass(self.rows[slot], table[slot])
          emitted[slot] += self.rows[slot].new
      if sum(self.rows[i].ended for i in runs) > before:
        if self.rng.random() < 0.5:  # It may end early, and it may not.
          break

  def _pass(self, row, pages):
    draft = self.cycle == 2 and not row.mid
    row.new = []
    row.mid = draft
    block = range(row.length, row.length + self.block)
    for position in block:
      self.write(pages, position, ("draft", row.request.arrival))
    if draft:
      return
    ids = self.read(pages, row.length)
    new = []
    for _ in range(accepted(ids, self.block)):
      self.write(pages, row.length, row.last)
      ids.append(row.last)
      row.last = token(ids)
      new.append(row.last)
      row.length += 1
    row.emit(new)


def visit_rows(rows, visit):
  """Slots that hold rows of the visit already."""
  return {i for i, row in rows.items() if row.request in visit.rows}


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
