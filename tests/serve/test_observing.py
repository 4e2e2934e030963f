"""What an engine learns from its visits, by a clock that the test sets."""

import types

import pytest

from nemodiff_jax.serve import observing
from nemodiff_jax.serve.observing import Observer


class Told:
  """Keeps what it was told, instead of chunk sizes, widths and statistics."""

  def __init__(self):
    self.heard = []

  def __getattr__(self, name):
    return lambda *given: self.heard.append((name, *given))


@pytest.fixture
def clock(monkeypatch):
  now = types.SimpleNamespace(seconds=0.0)
  monkeypatch.setattr(observing.time, "perf_counter", lambda: now.seconds)
  return now


@pytest.fixture
def observer():
  return Observer(Told(), Told(), Told())


def flight(start=0.0, passes=2, begun=(), first=False, width=8):
  visit = types.SimpleNamespace(
    bucket=4, width=width, active=(True, True, False), begun=frozenset(begun)
  )
  return types.SimpleNamespace(
    visit=visit,
    start=start,
    passes=passes,
    passed=object() if passes else None,
    begun=dict.fromkeys(begun),
    first=first,
  )


def told(observer):
  parts = (observer._statistics, observer._chunks, observer._widths)
  return [part.heard for part in parts]


def test_a_visit_takes_from_the_read_before_and_its_passes_from_their_start(
  observer, clock
):
  clock.seconds = 3.0
  observer.time(flight(start=1.0), 1.5)
  clock.seconds = 7.0
  late = flight(start=2.0)  # It waited for the one before until 3.
  observer.time(late, 5.0)
  counted, chunks, widths = told(observer)
  assert counted == [("visit", 2, 2.0), ("visit", 2, 4.0)]
  assert chunks[1] == ("observe", late.visit, 2, 4.0)
  assert widths == [("observe_time", 4, 8, t, 2) for t in (1.5, 2.0)]


def test_the_first_run_of_a_program_teaches_nothing(observer, clock):
  clock.seconds = 30.0
  observer.time(flight(first=True), 0.0)
  assert told(observer) == [[], [], []]
  clock.seconds = 31.0
  observer.time(flight(start=0.0), 30.0)
  assert told(observer)[0] == [("visit", 2, 1.0)]


def test_a_visit_that_only_reads_is_timed_with_the_next(observer, clock):
  """Nobody waits for it, so neither its time nor the next one's is known."""
  for at, passes in ((1.0, 2), (1.1, 0), (5.0, 2), (6.0, 2)):
    clock.seconds = at
    observer.time(flight(passes=passes), None)
  counted, chunks, widths = told(observer)
  assert [c[0] for c in counted] == ["visit"] * 4
  assert [passes for _, _, passes, _ in chunks] == [2, 2]
  assert [round(s, 3) for *_, s in chunks] == [1.0, 1.0]
  assert not widths  # When the passes began is not known.


@pytest.mark.parametrize(
  "width, begun, tokens, expected",
  [(8, (), 7, (8, 2.0, 7)), (1, (2,), 7, (1, 4.0, 6)), (8, (2,), 0, (8, 2, 0))],
)
def test_a_yield_is_of_cycles_of_rows_without_first_tokens(
  observer, width, begun, tokens, expected
):
  observer.tokens(flight(width=width, begun=begun), tokens)
  assert told(observer)[2] == [("observe_yield", *expected)]


def test_a_visit_without_passes_yields_nothing_to_learn_from(observer):
  observer.tokens(flight(passes=0, begun=(1,)), 1)
  assert told(observer)[2] == []
