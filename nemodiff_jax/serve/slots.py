"""Which row runs where: the first slots are taken, the others are not."""

from collections.abc import Iterator

from nemodiff_jax.serve.request import Request


class Slots:
  """Rows that run, each in a slot of the batch."""

  def __init__(self):
    self._rows: list[Request | None] = []

  def __len__(self) -> int:
    return sum(row is not None for row in self._rows)

  def __iter__(self) -> Iterator[Request]:
    return (row for row in self._rows if row is not None)

  def put(self, row: Request) -> None:
    """Gives a row the first slot that is free."""
    if None not in self._rows:
      self._rows.append(None)
    row.slot = self._rows.index(None)
    self._rows[row.slot] = row

  def remove(self, row: Request) -> None:
    """Frees the slot of a row."""
    self._rows[row.slot] = None
    row.slot = -1

  def compact(self) -> list[tuple[int, int]]:
    """Brings the rows into the first slots: (from, to), as few as can be."""
    count = len(self)
    holes = [i for i, row in enumerate(self._rows[:count]) if row is None]
    behind = [row for row in self._rows[count:] if row is not None]
    moves = []
    for row, slot in zip(behind, holes, strict=True):
      moves.append((row.slot, slot))
      row.slot = slot
      self._rows[slot] = row
    del self._rows[count:]
    return moves
