"""What single visits hold: passes, slots, pages, what is read."""

import random

import pytest

from nemodiff_jax.errors import UserError
from nemodiff_jax.serve import plan
from nemodiff_jax.serve.pages import PagePool
from nemodiff_jax.serve.queue import QueueFull, WaitingQueue
from nemodiff_jax.serve.request import Phase, Progress, Request
from nemodiff_jax.serve.scheduler import Scheduler
from nemodiff_jax.serve.slots import Slots
from nemodiff_jax.serve.widths import Widths

PAGE = 4


def scheduler(pages=64, rows=8, **given) -> Scheduler:
  given = {"block": 1, "chunk": 100, "passes": 4} | given
  return Scheduler(PagePool(pages, PAGE), rows, **given)


def prompt(size: int, seed: int = 0) -> list[int]:
  return random.Random(seed).choices(range(1000), k=size)


def submit(engine, size=6, max_new=10, seed=0, **given) -> Request:
  request = Request(prompt(size, seed), max_new, **given)
  engine.submit(request)
  return request


def visit(engine, tokens=1, ended=()):
  """Plans a visit, and reads it at once: each row commits some tokens."""
  v = engine.plan()
  done = []
  for row in v.rows:
    begins = any(c.slot is not None and c.request is row for c in v.chunks)
    length = row.length + tokens
    done.append(Progress([7] * (tokens + begins), length, row in ended))
  engine.read(v, done)
  return v


def test_buckets_are_powers_of_two_and_the_rows():
  assert plan.buckets(1) == (1,)
  assert plan.buckets(8) == (1, 2, 4, 8)
  assert plan.buckets(12) == (1, 2, 4, 8, 12)
  assert [plan.bucket(n, 12) for n in range(13)] == (
    [0, 1, 2, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12]
  )


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("cycle", [1, 2])
@pytest.mark.parametrize("passes", range(1, 8))
def test_reach_is_a_block_behind_all_that_may_be_committed(
  block, cycle, passes
):
  """Wherever the row is in its cycle, with every draft right."""
  most = 0
  for turn in range(cycle):
    ends = [i for i in range(turn + 1, turn + 1 + passes) if i % cycle == 0]
    most = max(most, 10 + block * len(ends))
  assert plan.reach(10, passes, block, cycle, 1000) == most + block
  assert plan.reach(10, passes, block, cycle, 11) == 11


def test_three_rows_of_sixty_four_cost_what_three_cost():
  engine = scheduler(rows=64)
  for seed in range(3):
    submit(engine, seed=seed)
  assert visit(engine).bucket == 4


def test_rows_move_into_the_first_slots_and_new_rows_into_holes():
  engine = scheduler()
  rows = [submit(engine, seed=i) for i in range(5)]
  assert visit(engine).rows == tuple(rows)
  engine.end(rows[1])
  engine.end(rows[2])
  new = submit(engine, seed=9)
  v = visit(engine)
  assert v.moves == ((4, 2),)
  assert v.rows == (rows[0], new, rows[4], rows[3])
  assert [c.slot for c in v.chunks] == [1]
  assert [row.slot for row in v.rows] == [0, 1, 2, 3]
  assert v.bucket == 4
  slots = Slots()
  assert slots.compact() == [] and len(slots) == 0


def test_passes_are_few_where_somebody_waits_for_each_token():
  for given, passes in (({}, 4), ({"watched": True}, 2)):
    engine = scheduler(cycle=2)
    submit(engine, **given)
    assert visit(engine).passes == passes, given
    assert engine.plan().passes == passes, given
  engine = scheduler(cycle=2)
  submit(engine)
  visit(engine)
  submit(engine, seed=1, watched=True)
  assert visit(engine).passes == 2
  engine = scheduler(cycle=2, passes=3)  # Whole cycles.
  submit(engine)
  assert visit(engine).passes == 4


def test_wide_cycles_make_short_visits():
  """A row that ends holds its slot until then: so many tokens, so long."""
  for block, passes in ((1, 8), (4, 8), (8, 4), (16, 2), (32, 2)):
    engine = scheduler(block=block, cycle=2, passes=8)
    submit(engine)
    assert visit(engine).passes == passes


def test_a_prompt_that_is_watched_makes_only_rows_that_run_wait():
  engine = scheduler(chunk=4)
  submit(engine, 6, watched=True)
  visit(engine)
  assert not engine.watched  # It is read still.
  visit(engine)
  assert engine.watched == 1
  engine = scheduler(chunk=4)
  submit(engine, 2)
  submit(engine, 6, seed=1, watched=True)
  visit(engine)
  assert engine.running == 1 and not engine.watched  # Nobody watches who runs.


def test_prompts_wait_to_be_read_as_far_as_slots_are_free():
  engine = scheduler(rows=3, chunk=4)
  for seed in range(4):
    submit(engine, 6, seed=seed, watched=seed == 0)
  seen = []
  for _ in range(6):
    seen.append((engine.watched, engine.unread))
    visit(engine)
  # One is read in part, then it runs; the last one has no slot to wait for.
  assert seen == [(0, 3), (0, 3), (1, 2), (2, 1), (2, 1), (3, 0)]
  engine = scheduler(chunk=4)
  submit(engine, 6)
  visit(engine)
  assert engine.unread == 1  # The one that is read in part.
  visit(engine)
  assert engine.unread == 0


def test_widths_are_tried():
  widths = Widths((1, 4), every=1)
  engine = scheduler(block=4, cycle=2, passes=8, widths=widths)
  submit(engine, max_new=200)
  tried = []
  for _ in range(10):
    v = engine.plan()
    tried.append((v.width, v.passes))
    widths.observe_time(v.bucket, v.width, 1.0 if v.width == 1 else 0.1)
    (row,) = v.rows
    engine.read(v, [Progress([7], row.length + 1, accepted=[2])])
  assert set(tried) == {(1, 8), (4, 8)}
  assert tried[-1] == (4, 8)


def test_a_long_prompt_is_read_between_short_visits_and_in_order():
  """While others decode; who comes later is read when it is done."""
  engine = scheduler(chunk=8)
  first = submit(engine)
  assert visit(engine).passes == 4
  long, later = submit(engine, 20, seed=1), submit(engine, 3, seed=2)
  seen = [visit(engine) for _ in range(3)]
  assert [v.passes for v in seen] == [1, 1, 4]
  chunks = [[(c.request, c.start, c.stop) for c in v.chunks] for v in seen]
  assert chunks == [
    [(long, 0, 8)], [(long, 8, 16)], [(long, 16, 20), (later, 0, 3)]
  ]  # fmt: skip
  assert [len(v.rows) for v in seen] == [1, 1, 3]
  assert seen[-1].rows == (first, long, later)


def test_a_short_prompt_is_read_at_once():
  """Rows that run wait for it once; the next one waits for the next visit."""
  engine = scheduler(chunk=4, short=7)
  start = prompt(9)
  sizes = [3, 7, 8, 2, 7]
  rows = [Request(prompt(n, seed), 9) for seed, n in enumerate(sizes, 1)]
  rows.append(Request(start + prompt(4), 9))  # Short, once its start is shared.
  engine.submit(Request(start, 9))
  for row in rows:
    engine.submit(row)
  seen = []
  while engine.queue or len(engine.held) > engine.running:
    seen.append([c.stop - c.start for c in visit(engine).chunks])
  assert seen == [
    [4], [4], [1, 3], [7], [4], [4], [2, 7], [5]
  ]  # fmt: skip


def test_requests_that_come_at_once_read_what_they_share_once():
  """Of a long beginning; each reads its own end, and its last token."""
  engine = scheduler(chunk=8)
  start = prompt(40)
  rows = [Request(start + prompt(3, seed), 4) for seed in (1, 2, 3)]
  rows.append(Request(start, 4))
  for row in rows:
    engine.submit(row)
  chunks = []
  while engine.queue or len(engine.held) > engine.running:
    chunks += visit(engine, tokens=0).chunks
  read = {
    r: sum(c.stop - c.start for c in chunks if c.request is r) for r in rows
  }
  assert [read[r] for r in rows] == [43, 3, 3, 4]
  assert [r.reused for r in rows] == [0, 40, 40, 36]
  assert engine.pool.used == 10 + 3 * 2 + 3  # Shared pages count once.


@pytest.mark.parametrize("total", range(9, 18))
def test_the_next_turn_reads_only_what_is_new(total):
  """All whole pages; the last token of a reply is in none."""
  engine = scheduler(block=12)
  row = submit(engine, 5, total - 5)
  visit(engine, tokens=0)
  visit(engine, tokens=total - 6, ended=(row,))
  assert row.phase is Phase.ENDED and len(row.ids) == total
  later = Request(row.ids + [1], 4)
  engine.submit(later)
  (chunk,) = visit(engine).chunks
  assert chunk.start == later.reused == (total - 1) // PAGE * PAGE


def test_pages_with_a_row_that_is_cancelled_in_its_prompt_are_kept():
  engine = scheduler(chunk=8)
  row = submit(engine, 30)
  visit(engine)
  assert engine.end(row) and not engine.end(row)
  again = submit(engine, 30)
  (chunk,) = visit(engine).chunks
  assert chunk.start == again.reused == 8


@pytest.mark.parametrize("pages, rows", [(6, 1), (7, 2)])
def test_a_row_is_let_in_if_a_page_is_left_for_each_that_runs(pages, rows):
  """Each of the two takes three; the first grows soon."""
  engine = scheduler(pages=pages, passes=1)
  for seed in range(2):
    submit(engine, 7, seed=seed)
  assert len(engine.plan().rows) == rows


@pytest.mark.parametrize("pages, rows", [(8, 1), (9, 2)])
def test_a_row_that_lacks_only_room_for_its_last_block_may_still_grow(
  pages, rows
):
  """Each of the two takes four of its five; prompt and tokens fill four."""
  engine = scheduler(pages=pages, passes=1, block=4)
  for seed in range(2):
    submit(engine, 7, 9, seed=seed)
  assert len(engine.plan().rows) == rows


def test_fewer_passes_come_before_preemption():
  """Two rows have pages for a pass each, not for four."""
  engine = scheduler(pages=8, passes=8)
  old, young = submit(engine, 7, 24), submit(engine, 3, 24, seed=1)
  seen = [visit(engine) for _ in range(3)]
  assert [len(v.rows) for v in seen] == [2, 2, 2]
  assert seen[0].passes == 8 and seen[2].passes == 1
  assert not engine.preemptions and not seen[2].parks
  while not engine.preemptions:
    v = visit(engine)
  assert v.parks == ((1, young),) and v.rows == (old,)
  assert young.phase is Phase.WAITING and not young.pages


def test_cached_pages_go_before_passes_get_fewer():
  """A pool that is full of old texts is as good as an empty one."""
  engine = scheduler(pages=12, passes=8)
  row = submit(engine, 40, 4)
  visit(engine)
  engine.end(row)
  assert engine.pool.cached >= 10
  submit(engine, 8, 30, seed=1)
  assert [visit(engine, tokens=8).passes for _ in range(3)] == [8, 8, 8]


def test_a_preempted_row_goes_on_where_it_was():
  """Pages it had are found again; that is no reuse of the request's."""
  engine = scheduler(pages=9, passes=1)
  old = submit(engine, 7, 24)
  young = submit(engine, 5, 24, seed=1, reuse=0)
  while not engine.preemptions:
    visit(engine)
  length = young.length
  third = submit(engine, 3, 4, seed=2)
  engine.end(old)
  chunks = {c.request: c for c in visit(engine).chunks}
  assert list(chunks) == [young, third]  # In its old place.
  assert chunks[young].resumes and chunks[young].stop == length
  assert chunks[young].start == (length - 1) // PAGE * PAGE
  assert not chunks[third].resumes
  assert young.reused == 0 and young.preemptions == 1


def test_a_row_that_the_host_steers_is_not_dispatched_ahead():
  """The others are, and do not wait for it."""
  engine = scheduler()
  steered, other = submit(engine, ahead=False), submit(engine, seed=1)
  first, second = engine.plan(), engine.plan()
  # Its first token is read before it runs.
  assert first.active == second.active == (False, True)
  told = engine.read(first, [Progress([7], 5), Progress([7], 6)])
  assert told == [(0, steered), (1, other)]
  third = engine.plan()
  assert third.active == (True, True) and third.passes == 1
  assert engine.read(second, [Progress([], 0), Progress([7], 7)]) == [
    (1, other)
  ]
  assert steered.length == 5
  with pytest.raises(ValueError, match="in the order of their plans"):
    engine.read(first, [])
  assert engine.flight == 1


def test_nothing_to_do_is_no_visit():
  engine = scheduler()
  assert engine.plan() is None
  row = submit(engine, ahead=False)
  v = engine.plan()
  assert engine.plan() is None
  assert engine.end(row)
  assert engine.read(v, [Progress([7], 6)]) == []
  assert engine.plan() is None and engine.pool.used == 0


def test_a_request_that_could_never_fit_is_refused():
  engine = scheduler(pages=12, block=4)
  engine.submit(Request([1] * 40, 4))
  message = (
    r"prompt \(40 tokens\) \+ max_new_tokens \(5\) \+ a block \(4\) need 13"
    " pages of 4 positions, but the cache pool has 12; shorten one"
  )
  with pytest.raises(UserError, match=message) as e:
    engine.submit(Request([1] * 40, 5))
  assert e.value.kind == "too_long"
  assert len(engine.queue) == 1


def test_the_queue_is_bounded_and_says_so():
  engine = scheduler(queue=2)
  submit(engine), submit(engine)
  message = "2 requests wait already, and at most 2 may; send this one again"
  with pytest.raises(QueueFull, match=message) as e:
    submit(engine)
  assert (e.value.size, e.value.limit, e.value.kind) == (2, 2, "queue_full")
  assert isinstance(e.value, UserError) and len(engine.queue) == 2
  with pytest.raises(UserError, match="at least 1 request, got 0"):
    scheduler(queue=0)


def test_the_queue_goes_by_priority_and_then_by_arrival():
  engine = scheduler(rows=1)
  rows = [
    submit(engine, 3, priority=p, seed=i) for i, p in enumerate((1, 0, 1, 0))
  ]
  assert list(engine.queue) == [rows[1], rows[3], rows[0], rows[2]]
  seen = []
  for _ in rows:
    (row,) = visit(engine).rows
    seen.append(row)
    engine.end(row)
  assert seen == [rows[1], rows[3], rows[0], rows[2]]


def test_who_was_preempted_has_room_in_a_full_queue():
  queue = WaitingQueue(1)
  rows = [Request([1], 1) for _ in range(2)]
  for i, row in enumerate(rows):
    row.arrival = i
  queue.add(rows[1])
  queue.restore(rows[0])
  assert list(queue) == rows and queue.first() is rows[0]
  queue.remove(rows[0])
  with pytest.raises(ValueError, match="request 0 does not wait"):
    queue.remove(rows[0])
