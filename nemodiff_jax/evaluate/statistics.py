"""Intervals: of shares, of ratios, of paired differences."""

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES, SEED = 10_000, 0
_Z = 1.959963984540054  # Of 95 %.


def share_interval(share: float, count: int) -> tuple[float, float]:
  """Wilson's 95 % interval of a share of `count` independent trials.

  For means of scores between 0 and 1 it is too wide, never too narrow.
  """
  z2 = _Z**2 / count
  middle = (share + z2 / 2) / (1 + z2)
  half = _Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count))
  half /= 1 + z2
  return max(0.0, middle - half), min(1.0, middle + half)


def ratio_interval(
  above: Sequence[float], below: Sequence[float]
) -> tuple[float, float]:
  """Bootstrap's 95 % interval of sum(above) / sum(below), by questions."""
  draws = _draws(len(above))
  top, bottom = np.asarray(above)[draws].sum(1), np.asarray(below)[draws].sum(1)
  low, high = np.percentile(top / np.maximum(bottom, 1), (2.5, 97.5))
  return float(low), float(high)


def paired_interval(differences: Sequence[float]) -> tuple[float, float]:
  """Bootstrap's 95 % interval of a mean of paired differences."""
  given = np.asarray(differences, np.float64)
  low, high = np.percentile(given[_draws(len(given))].mean(1), (2.5, 97.5))
  return float(low), float(high)


def _draws(count: int) -> np.ndarray:
  """[RESAMPLES', count] indices; fewer where there are many questions."""
  times = min(RESAMPLES, max(1000, 20_000_000 // max(1, count)))
  return np.random.default_rng(SEED).integers(0, count, (times, count))
