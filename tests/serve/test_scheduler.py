"""Thousands of random events; each request gets the tokens it gets alone."""

import random

import pytest

from nemodiff_jax.serve.pages import PagePool
from nemodiff_jax.serve.queue import QueueFull
from nemodiff_jax.serve.request import Phase, Request
from nemodiff_jax.serve.scheduler import Scheduler
from nemodiff_jax.serve.widths import Widths
from tests.serve.fake_device import (
  Device,
  alone,
  check_pages,
  holders,
  passes_alone,
)

PAGE = 4


def place(request: Request):
  """In the queue, and among those who may keep their pages."""
  return request.priority, request.arrival


class World:
  """A scheduler, a device, and visits whose results come late."""

  def __init__(self, seed: int, **given):
    rng = self.rng = random.Random(seed)
    auto = given.pop("auto", False)
    self.block = 4 if auto else given.pop("block", rng.randrange(1, 7))
    cycle = self.cycle = 2 if auto else given.pop("cycle", rng.choice((1, 2)))
    self.widths = Widths((1, 2, 4), every=2) if auto else None
    pages = given.pop("pages", rng.randrange(12, 40))
    self.depth = given.pop("depth", rng.randrange(1, 4))
    given = {
      "chunk": rng.randrange(3, 24), "short": rng.choice((0, 0, 12)),
      "passes": rng.randrange(1, 9), "queue": 12, "rows": rng.randrange(1, 7),
    } | given  # fmt: skip
    pool = PagePool(pages, PAGE)
    self.scheduler = Scheduler(
      pool, block=self.block, cycle=cycle, widths=self.widths, **given
    )
    self.device = Device(pages, PAGE, cycle, auto, seed)
    self.requests: list[Request] = []
    self.texts: dict[Request, list[int]] = {}
    self.late: list = []
    self.stopped: set[Request] = set()
    self.used: set[int] = set()
    self.events = 0

  @property
  def live(self):
    return [r for r in self.requests if r.phase is not Phase.ENDED]

  def submit(self, **given) -> Request | None:
    rng = self.rng
    most = self.scheduler.pool.pages * PAGE - self.block
    prompt = [rng.randrange(1, 6) for _ in range(rng.randrange(1, 30))]
    if self.requests and rng.random() < 0.6:  # The next turn of a talk.
      start = rng.choice(self.requests[-4:]).ids
      prompt = start[: rng.choice((8, 16, len(start)))] + prompt[:6]
    prompt = prompt[: most - 1]
    given = {
      "max_new": rng.randrange(min(40, most - len(prompt) + 1)),
      "priority": rng.choice((0, 0, 0, 1)), "salt": rng.choice(("", "", "b")),
      "reuse": rng.choice((None, None, None, 0, 7)),
      "watched": rng.random() < 0.1, "ahead": rng.random() < 0.9,
      "aligned": rng.random() < 0.8,
    } | given  # fmt: skip
    request = Request(given.pop("prompt", prompt), **given)
    try:
      self.scheduler.submit(request)
    except QueueFull as e:
      assert e.size == len(self.scheduler.queue) >= e.limit == 12
      return None
    self.requests.append(request)
    self.texts[request] = list(request.prompt)
    return request

  def step(self) -> bool:
    """One visit is planned, dispatched, and an earlier one read."""
    held = holders(self.scheduler, self.requests)
    counts = {r: r.preemptions for r in self.requests}
    waiting = list(self.scheduler.queue)
    visit = self.scheduler.plan()
    self.check_order(held, counts, waiting)
    if visit is not None:
      flying = {
        row
        for v, _ in self.late
        for slot, (row, on) in enumerate(zip(v.rows, v.active, strict=True))
        if on or slot in v.begun
      }
      for row, on in zip(visit.rows, visit.active, strict=True):
        new = row.slot in visit.begun and not row.ahead  # It is read first.
        assert on == (row.ahead or not (row in flying or new))
      self.used.add(visit.width)
      self.late.append((visit, self.device.run(visit)))
    read = self.late and (visit is None or len(self.late) > self.depth)
    if read:
      self.read(*self.late.pop(0))
    return visit is not None or bool(read)

  def read(self, visit, progress):
    if self.widths is not None:
      seconds = self.rng.random() * visit.width * visit.bucket
      self.widths.observe_time(visit.bucket, visit.width, seconds)
    before = {r for r in visit.rows if r.phase is Phase.ENDED}
    for slot, row in self.scheduler.read(visit, progress):
      assert row is visit.rows[slot] and row not in before
      self.texts[row] += progress[slot].tokens
      if row.phase is not Phase.ENDED and self.rng.random() < 0.02:
        assert self.scheduler.end(row)  # A stop string.
        self.stopped.add(row)

  def check_order(self, held, counts, waiting):
    """Who was preempted, who was let in."""
    out = [r for r in held if r.preemptions > counts[r]]
    stay = [r for r in held if r not in out]
    assert not out or (stay and place(stay[-1]) < place(out[0]))
    let_in = [r for r in waiting if r.phase is not Phase.WAITING]
    left = [r for r in waiting if r.phase is Phase.WAITING]
    assert all(place(a) < place(b) for a in let_in for b in left)
    queue = [place(r) for r in self.scheduler.queue]
    assert queue == sorted(queue)

  def cancel(self):
    if self.live:
      row = self.rng.choice(self.live)
      assert self.scheduler.end(row) and not self.scheduler.end(row)
      self.stopped.add(row)

  def drain(self):
    for _ in range(3000):
      if not self.step():
        break
    assert not self.live, "requests wait for ever"

  def check(self):
    self.events += 1
    check_pages(self.scheduler, self.requests)

  def check_texts(self):
    for row in self.requests:
      want = alone(row)
      assert self.texts[row] == row.ids
      if row in self.stopped:
        assert row.ids == want[: len(row.ids)]
        continue
      assert row.ids == want
      if row.aligned and self.widths is None and row.max_new:
        passes = passes_alone(row, self.block, self.cycle)
        assert self.device.nfe[row] == passes


def live_through(world: World, events: int) -> World:
  for _ in range(events):
    event = world.rng.random()
    if event < 0.25:
      world.submit()
    elif event < 0.28:
      world.cancel()
    elif event < 0.29:
      world.scheduler.pool.flush()
    else:
      world.step()
    world.check()
  world.drain()
  world.check()
  world.check_texts()
  assert world.scheduler.pool.used == 0
  return world


@pytest.mark.parametrize("seed", range(40))
def test_every_request_gets_the_tokens_it_gets_alone(seed):
  live_through(World(seed), 400)


@pytest.mark.parametrize("seed", range(20))
def test_the_width_never_changes_inside_a_cycle(seed):
  world = World(seed, auto=True, pages=16 + seed, rows=2 + seed % 5)
  live_through(world, 300)
  assert len(world.used) > 1


def test_the_events_are_those_that_hurt():
  """Pools that are short, prefixes that are shared, ends that come late."""
  worlds = [live_through(World(s, pages=16, rows=6), 400) for s in range(8)]
  assert sum(w.scheduler.preemptions for w in worlds) > 50
  assert sum(w.scheduler.pool.reused for w in worlds) > 500
  assert sum(w.scheduler.pool.evictions for w in worlds) > 1000
  assert sum(len(w.stopped) for w in worlds) > 50
