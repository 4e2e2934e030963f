"""An array that is not in memory until it is written."""

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np

_BLOCK = 2**20  # Elements: 4 MiB in float32.


@dataclasses.dataclass(frozen=True)
class Lazy:
  """Shape and dtype of an array, and how to get it.

  Attributes:
    shape: of the array.
    dtype: numpy dtype.
    read: returns the array; called once, just before it is written.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]

  @property
  def nbytes(self) -> int:
    """Bytes of the array."""
    return math.prod(self.shape) * self.dtype.itemsize


def lazy(array) -> Lazy:
  """An array, of NumPy or JAX, that is there already."""
  return Lazy(array.shape, np.dtype(array.dtype), lambda: np.asarray(array))


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
  """Cuts an array's first axis, for work that should not hold all of it.

  Into blocks of at most _BLOCK elements or of two rows; one more may be left.
  """
  rows = max(2, _BLOCK // max(1, math.prod(shape[1:])))
  for start in range(0, shape[0], rows):
    yield slice(start, start + rows)


def places(
  shape: tuple[int, ...], test: Callable[[slice], np.ndarray]
) -> tuple[int, tuple[int, ...]]:
  """Where a test of some rows holds: how often, and the first place, () if never.

  Args:
    shape: of the whole array, of one axis at least.
    test: rows of the first axis -> bool array [rows, ...].
  """
  count, first = 0, ()
  for rows in row_blocks(shape):
    found = test(rows)
    here = int(np.count_nonzero(found))
    if here and not count:
      at = np.unravel_index(found.argmax(), found.shape)
      first = (rows.start + int(at[0]), *map(int, at[1:]))
    count += here
  return count, first
