"""What an engine learns from its visits: how long they take, what they yield."""

import time

from nemodiff_jax.serve.chunks import ChunkSizes
from nemodiff_jax.serve.flight import Flight
from nemodiff_jax.serve.statistics import Statistics
from nemodiff_jax.serve.widths import Widths, passes_of


class Observer:
  """Hands what was seen to those who choose chunks and widths, and count."""

  def __init__(
    self, statistics: Statistics, chunks: ChunkSizes, widths: Widths | None
  ):
    self._statistics = statistics
    self._chunks = chunks
    self._widths = widths
    self._read_at = 0.0
    self._awaited = True  # Whether the visit before had something to wait for.

  def passes_since(self, flight: Flight) -> float | None:
    """When its passes began, before it is read; None if nobody can tell."""
    return flight.passes_since(self._read_at)

  def time(self, flight: Flight, since: float | None) -> None:
    """Takes how long a visit took that was just read, and its passes alone.

    Args:
      flight: the visit.
      since: what `passes_since` said of it.
    """
    now = time.perf_counter()
    seconds = now - max(flight.start, self._read_at)
    self._read_at = now
    # A visit that only reads is not waited for: its time is in the next one's.
    visit, passes = flight.visit, flight.passes
    before, self._awaited = self._awaited, bool(flight.begun or passes)
    if flight.first:  # A program that runs for the first time takes longer.
      return
    self._statistics.visit(passes, seconds)
    if before and self._awaited:
      self._chunks.observe(visit, passes, seconds)
    if self._widths is not None and passes and since is not None:
      self._widths.observe_time(visit.bucket, visit.width, now - since, passes)

  def tokens(self, flight: Flight, tokens: int) -> None:
    """Takes how many tokens requests got from a visit."""
    if self._widths is None or flight.passed is None:
      return
    visit = flight.visit
    cycles = sum(visit.active) * flight.passes / passes_of(visit.width)
    new = max(tokens - len(visit.begun), 0)
    self._widths.observe_yield(visit.width, cycles, new)
