"""How many passes a visit has, and how wide they are."""

from collections.abc import Callable, Collection, Iterable, Sequence

from nemodiff_jax.serve.request import Request
from nemodiff_jax.serve.widths import Widths, cycles_of

# Of a number of rows, the batch size to run them in, and the widths that are
# compiled for it.
Ready = Callable[[int], tuple[int, Collection[int]]]


class Pace:
  """Passes and widths of visits, in whole cycles of rows that are aligned.

  Attributes:
    cycle: passes of the shortest cycle, and of the shortest visit.
  """

  def __init__(
    self, block: int, cycle: int, passes: int, widths: Widths | None
  ):
    self.cycle = cycle
    self._passes = -(-passes // cycle) * cycle
    self._widths = widths
    self._width = block

  def passes(self, rows: Sequence[Request]) -> int:
    """Passes of these rows, if all have pages; few where somebody waits."""
    short = any(row.watched or not row.ahead for row in rows)
    return self.cycle if short else self._passes

  def width(
    self,
    held: Iterable[Request],
    active: Sequence[Request],
    bucket: int,
    compiled: Collection[int] | None,
  ) -> tuple[int, int]:
    """The width of the next cycles, and their passes at most.

    A visit is as long as its rows take for a number of tokens, whatever the
    width: a row that has ended holds its slot until the next visit is read.

    It changes only where every row is between two cycles for certain: rows
    that are aligned are so between visits, others where it was read.

    Args:
      held: rows that have a slot.
      active: those of them that run in the visit.
      bucket: batch size of its passes.
      compiled: widths that are, for this bucket; None: all.
    """
    if self._widths is None or not active:
      return self._width, self._most()
    if any(not row.aligned and (row.flying or row.mid) for row in held):
      return self._width, self._most()
    self._width, _ = self._widths.choose(active, bucket, compiled)
    return self._width, self._most()

  def _most(self) -> int:
    """Passes that may yield about as many tokens of a row at any width."""
    cycles = cycles_of(self._width, self._passes)
    return min(self._passes, cycles * self.cycle)
