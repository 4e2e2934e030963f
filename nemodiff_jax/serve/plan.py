"""Sizes of a visit: batch sizes, pages ahead of need. Pure functions."""

from nemodiff_jax.serve.request import Request


def buckets(rows: int) -> tuple[int, ...]:
  """Batch sizes that passes are compiled for: 1, 2, 4, 8, ... and `rows`."""
  return (*(1 << i for i in range((rows - 1).bit_length())), rows)


def bucket(count: int, rows: int) -> int:
  """The smallest of them that holds `count` rows; 0 for none."""
  return next(b for b in (0, *buckets(rows)) if b >= count)


def reach(length: int, passes: int, block: int, cycle: int, limit: int) -> int:
  """Positions that a row may write to, from 0, in passes that are not read.

  Each cycle commits a block at most, and the last pass writes a block behind
  what is committed.

  Args:
    length: committed positions, as far as it is known.
    passes: that are planned or in flight.
    block: C, positions that a pass writes to.
    cycle: passes of the shortest cycle.
    limit: prompt + max_new + C: no pass writes behind.
  """
  return min(limit, length + -(-passes // cycle) * block + block)


def pages_of(positions: int, page: int) -> int:
  """Pages that hold so many positions."""
  return -(-positions // page)


def lacks(row: Request, passes: int, block: int, cycle: int, page: int) -> int:
  """Pages that a row needs besides its own, for so many passes more.

  Args:
    row: that is read or runs.
    passes: that are planned next; they count if the row takes part.
    block: C.
    cycle: passes of the shortest cycle.
    page: positions of a page.
  """
  flying = row.flying + (passes if row.runs else 0)
  positions = reach(row.length, flying, block, cycle, row.limit(block))
  return max(pages_of(positions, page) - len(row.pages), 0)
