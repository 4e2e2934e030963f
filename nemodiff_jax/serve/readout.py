"""What the passes of a visit did, row by row, on the host."""

from collections.abc import Iterator

import jax

from nemodiff_jax.decode.state import RUNNING, Emitted
from nemodiff_jax.serve.device import Passed
from nemodiff_jax.serve.request import Progress


def parts(
  begun: Passed | None, passed: Passed | None, slot: int
) -> Iterator[tuple[Emitted, int, int, int]]:
  """The passes in which a row ran: what was emitted, its place, nfe, status."""
  running = True
  for part, row in ((begun, 0), (passed, slot)):
    if part is None or not running:
      continue
    for i in range(int(part.count)):
      emitted = jax.tree.map(lambda x, i=i: x[i], part.emitted)
      status = int(part.status[i, row])
      yield emitted, row, int(part.nfe[i, row]), status
      running = status == RUNNING


def progress_of(
  begun: Passed | None, passed: Passed | None, slot: int
) -> Progress:
  """What a visit did for the row in a slot, for the scheduler."""
  tokens, accepted, ended = [], [], False
  for emitted, row, _, status in parts(begun, passed, slot):
    ended = status != RUNNING
    tokens += emitted.picked.token[row, : emitted.count[row]].tolist()
    if emitted.cycle[row]:
      accepted.append(int(emitted.cycle[row]))
  last, row = (begun, 0) if passed is None else (passed, slot)
  if last is None:
    return Progress((), 0)
  return Progress(
    tokens=tokens,
    length=int(last.lengths[row]),
    ended=ended,
    mid=bool(last.middle[row]),
    accepted=accepted,
  )
