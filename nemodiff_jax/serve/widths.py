"""The width of each cycle of linear_spec, by what it yields a second.

A cycle of width w > 1 is a draft and its verification: two passes, and of each
row one token more than the drafts that were right. A cycle of width 1 is an ar
pass, and one token a row. In a lossless mode the width changes no token, so
the best one is what yields most: with many rows narrow, with few rows wide.
"""

import statistics
from collections import deque
from collections.abc import Collection, Hashable, Sequence

import numpy as np

_MOST = 0.99  # Acceptance that is believed; a run of luck is no certainty.
_GUESS = 0.7  # Acceptance before anything was seen.
_PRIOR = 16.0  # Drafts that a guess weighs as much as.
_WIDTH_PRIOR = 32.0  # As much as what was seen at other widths.
_DECAY = 0.998  # Of what is known of a width, per cycle of a row.
_ROW_DECAY = 0.95  # Of what is known of a row, per cycle.
_YIELD_PRIOR = 8.0  # Tokens that a guess of the yield weighs as much as.
_YIELD_DECAY = 0.9  # Of what is known of it, per visit.
_WINDOW = 15  # Times whose median counts.
_ENOUGH = 3  # Times before a width is judged.
_MARGIN = 0.02  # A width that is better by less is not worth the change.


def passes_of(width: int) -> int:
  """Passes of a cycle: of one slot it is an ar pass, else draft and verify."""
  return 1 if width == 1 else 2


def cycles_of(width: int, passes: int) -> int:
  """Cycles of a visit of so many passes at most, and twice as many tokens."""
  return max(1, min(passes // passes_of(width), 2 * passes // width))


class Widths:
  """Chooses among widths by running times and acceptance, as observed.

  Acceptance is kept for each draft slot of each width, since it depends on
  both, for all rows together; and for each row, how much more or less of its
  drafts is right than that. The slots are those of a usual row: which rows ran
  when a width was tried says nothing of the width.
  """

  def __init__(
    self,
    widths: Sequence[int],
    *,
    cost: float = 0.005,
    every: int = 16,
    passes: int = 8,
  ):
    """Knows nothing yet.

    Args:
      widths: that are compiled, 1 among them.
      cost: of the time, as estimated, that trying other widths may lose; the
        truth is up to 1 %, since what is tried often is what looks good.
      every: choices before a width that was not used is tried again.
      passes: of a visit, at most.
    """
    self._widths = tuple(sorted(widths))
    self._cost = cost
    self._every = every
    self._passes = passes
    self._times: dict[tuple[int, int], deque[float]] = {}
    self._tried = {w: np.zeros(w - 1) for w in self._widths}
    self._right = {w: np.zeros(w - 1) for w in self._widths}
    self._rows: dict[Hashable, tuple[float, float]] = {}
    self._promised = dict.fromkeys(self._widths, 1.0)  # Of a row and cycle.
    self._made = dict.fromkeys(self._widths, 0.0)  # Tokens, and those that
    self._hoped = dict.fromkeys(self._widths, 0.0)  # acceptance promised.
    self._curves: dict[int, np.ndarray] = {}  # Acceptance by slot.
    self._best: int | None = None
    self._choices = 0
    self._used = dict.fromkeys(self._widths, 0)
    self._budget = 0.0

  def observe_time(
    self, bucket: int, width: int, seconds: float, passes: int = 1
  ) -> None:
    """Takes the time of passes that ran together, without chunks of prompts."""
    times = self._times.setdefault((bucket, width), deque(maxlen=_WINDOW))
    times.append(seconds / passes)
    self._budget += self._cost * passes * statistics.median_low(times)

  def observe_acceptance(
    self, row: Hashable, width: int, accepted: Sequence[int]
  ) -> None:
    """Takes what cycles of a row have accepted: 1 to `width` tokens each."""
    if width == 1:
      return
    expected = self._curve(width)
    slot = np.arange(width - 1)
    more, tried = self._rows.get(row, (0.0, 0.0))
    for count in accepted:
      seen, right = slot < count, slot < count - 1
      self._tried[width] = self._tried[width] * _DECAY + seen
      usual = right - seen * (more / (tried + _PRIOR))
      self._right[width] = self._right[width] * _DECAY + usual
      more = more * _ROW_DECAY + float((right - expected)[seen].sum())
      tried = tried * _ROW_DECAY + float(seen.sum())
    self._rows[row] = more, tried

  def observe_yield(self, width: int, cycles: float, tokens: int) -> None:
    """Takes what a visit has yielded.

    It is less than acceptance promises: the last cycle of an answer goes beyond
    its end, and a row that has ended holds its slot until the visit is read.

    Args:
      width: of its cycles.
      cycles: of all its rows.
      tokens: that requests got from them.
    """
    hoped = cycles * self._promised[width]
    self._hoped[width] = self._hoped[width] * _YIELD_DECAY + hoped
    self._made[width] = self._made[width] * _YIELD_DECAY + tokens

  def forget(self, row: Hashable) -> None:
    """Drops a row that has ended."""
    self._rows.pop(row, None)

  def acceptance(self, width: int) -> list[float]:
    """How often each draft slot is right, where those before it are."""
    return [float(p) for p in self._slots(width)]

  def choose(
    self,
    rows: Sequence[Hashable],
    bucket: int,
    ready: Collection[int] | None = None,
  ) -> tuple[int, bool]:
    """The width of the next cycles of these rows.

    Args:
      rows: that run.
      bucket: the batch size of their passes.
      ready: widths that are compiled for it; None: all.

    Returns:
      (width, whether it is tried only, for one visit).
    """
    usable = [w for w in self._widths if ready is None or w in ready]
    self._choices += 1
    self._curves = {}
    for width in usable:
      if len(self._times.get((bucket, width), ())) < _ENOUGH:
        return self._take(width), len(usable) > 1
    rates = {w: self._rate(rows, bucket, w) for w in usable}
    best = max(usable, key=lambda w: rates[w])
    now = self._best
    if now in rates and rates[now] * (1 + _MARGIN) >= rates[best]:
      best = now
    self._best = best
    probe = self._probe(bucket, rates, best)
    return (self._take(best), False) if probe is None else (probe, True)

  def _probe(
    self, bucket: int, rates: dict[int, float], best: int
  ) -> int | None:
    """Another width that is due, if the time that it loses was saved up."""
    lost = {}
    for width, rate in rates.items():
      seconds = self._cycle_time(bucket, width)
      seconds *= cycles_of(width, self._passes)
      lost[width] = max(seconds * (1 - rate / rates[best]), 0.0)
    self._budget = min(self._budget, max(lost.values()))
    due = [
      w
      for w in rates
      if w != best
      and self._choices - self._used[w] >= self._every
      and lost[w] <= self._budget
    ]
    if not due:
      return None
    width = min(due, key=lambda w: self._used[w])
    self._budget -= lost[width]
    return self._take(width)

  def _take(self, width: int) -> int:
    self._used[width] = self._choices
    return width

  def _rate(self, rows: Sequence[Hashable], bucket: int, width: int) -> float:
    """Expected tokens per second of these rows in cycles of this width."""
    tokens = self._expected(rows, width)
    self._promised[width] = tokens / len(rows)
    return tokens * self._yielded(width) / self._cycle_time(bucket, width)

  def _expected(self, rows: Sequence[Hashable], width: int) -> float:
    """Tokens of a cycle of these rows, by their acceptance."""
    if width == 1:
      return float(len(rows))
    known = [self._rows.get(row, (0.0, 0.0)) for row in rows]
    more = np.array([m / (n + _PRIOR) for m, n in known])
    slots = np.clip(self._curve(width)[None] + more[:, None], 0, _MOST)
    return len(rows) + float(np.cumprod(slots, 1).sum())

  def _yielded(self, width: int) -> float:
    """Tokens of a width by those that its acceptance promised."""
    made, hoped = sum(self._made.values()), sum(self._hoped.values())
    usual = (made + _YIELD_PRIOR) / (hoped + _YIELD_PRIOR)
    return (self._made[width] + usual * _YIELD_PRIOR) / (
      self._hoped[width] + _YIELD_PRIOR
    )

  def _cycle_time(self, bucket: int, width: int) -> float:
    """Seconds; the median, so that a pause of the machine does not count.

    A pass takes no longer than a wider one, nor than its share of a narrower
    one: a width that was unlucky when it was first tried is tried again.
    """
    time = min(
      statistics.median_low(times) * max(1, width / other)
      for (size, other), times in self._times.items()
      if size == bucket
    )
    return time * passes_of(width)

  def _curve(self, width: int) -> np.ndarray:
    """The same from one choice to the next: rows are many."""
    if width not in self._curves:
      self._curves[width] = self._slots(width)
    return self._curves[width]

  def _slots(self, width: int) -> np.ndarray:
    """Acceptance of each draft slot of a width.

    What was seen little of a width is as in all widths, and what was seen
    little of a slot is as in the slot before.
    """
    p, slots = _GUESS, []
    for right, tried in zip(*self._everywhere(), strict=True):
      p = (right + p * _PRIOR) / (tried + _PRIOR)
      slots.append(p)
    right, tried = self._right[width], self._tried[width]
    shared = np.array(slots[: width - 1])
    return (right + shared * _WIDTH_PRIOR) / (tried + _WIDTH_PRIOR)

  def _everywhere(self) -> np.ndarray:
    """(right, tried) of each slot, over all widths."""
    out = np.zeros((2, self._widths[-1] - 1))
    for width in self._widths:
      out[0, : width - 1] += self._right[width]
      out[1, : width - 1] += self._tried[width]
    return out
