"""An array that is not in memory until it is written."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np


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
