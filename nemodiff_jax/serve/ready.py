"""Which of the compiled programs a visit runs, and which would be better."""

import dataclasses
import statistics
from collections.abc import Container, Sequence

from nemodiff_jax.serve.plan import bucket, buckets
from nemodiff_jax.serve.programs import Key, Programs
from nemodiff_jax.serve.statistics import Statistics

_PAYS = 10  # Times that a program takes to compile.


@dataclasses.dataclass(frozen=True)
class Choice:
  """Programs of a visit.

  Attributes:
    rows: batch size of its passes.
    widths: of which it may have one.
    missing: a program that would serve better; None: there is none.
  """

  rows: int
  widths: Sequence[int]
  missing: Key | None


def choose(
  programs: Container[Key],
  rows: int,
  widths: Sequence[int],
  count: int,
  wanted: int,
  kind: tuple[bool, ...],
) -> Choice:
  """What is compiled for a visit.

  A larger batch serves until the smaller one is compiled. Where nothing is,
  one program is to be compiled at once, for all that wait.

  Args:
    programs: that are compiled.
    rows: of the engine.
    widths: that its passes may have, the widest last.
    count: rows of the visit.
    wanted: rows that run or wait.
    kind: what else the program has to have (logprobs, adjusted, traced).
  """
  found = {
    size: [w for w in widths if ("passes", size, w, *kind) in programs]
    for size in buckets(rows)
    if size >= count
  }
  size = next((b for b, ready in found.items() if ready), None)
  if size is None:
    return Choice(bucket(min(rows, wanted), rows), widths[-1:], None)
  best = min(found)
  missing = [w for w in reversed(widths) if w not in found[best]]
  better = ("passes", best, missing[0], *kind) if missing else None
  return Choice(size, found[size], better)


def pays(programs: Programs, done: Statistics, left: int) -> bool:
  """Whether `left` tokens take many times what a program takes to compile."""
  if not done.tokens:
    return False
  seconds = left * done.seconds / done.tokens
  return seconds > _PAYS * statistics.median(programs.seconds.values())
