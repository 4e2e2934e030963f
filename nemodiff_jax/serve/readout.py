"""What the passes of a visit did, row by row, on the host."""

import dataclasses
from collections.abc import Iterator, Sequence

from nemodiff_jax.decode.state import RUNNING, Emitted, Picked, Proposed
from nemodiff_jax.serve.device import Passed
from nemodiff_jax.serve.request import Progress

Part = tuple[Emitted, int, int, int]


@dataclasses.dataclass(frozen=True)
class Told:
  """What passes did, copied to the host: `emitted` of each one by itself."""

  passed: Passed
  emitted: list[Emitted]

  def row(self, row: int) -> Iterator[Part]:
    """Of the passes in which it ran: emitted, the row, its nfe and status."""
    nfe, status = self.passed.nfe[:, row], self.passed.status[:, row]
    for i, emitted in enumerate(self.emitted):
      yield emitted, row, int(nfe[i]), int(status[i])
      if status[i] != RUNNING:
        return


def told(passed: Passed) -> Told:
  """Passes by themselves; once for all rows, since it takes its time."""
  picked, kept = passed.emitted.picked, passed.emitted
  proposed = kept.proposed
  one = lambda x, i: None if x is None else x[i]
  return Told(
    passed,
    [
      Emitted(
        Picked(
          picked.token[i],
          one(picked.logprob, i),
          one(picked.top_ids, i),
          one(picked.top_logprobs, i),
        ),
        kept.count[i],
        kept.cycle[i],
        proposed and Proposed(proposed.token[i], proposed.confidence[i]),
      )
      for i in range(int(passed.count))
    ],
  )


def parts(begun: Told | None, passed: Told | None, slot: int) -> list[Part]:
  """What a row did in a visit: as it began, and in its passes."""
  found = [] if begun is None else list(begun.row(0))
  if passed is not None and (not found or found[-1][3] == RUNNING):
    found += passed.row(slot)
  return found


def last_of(
  begun: Told | None, passed: Told | None, slot: int
) -> tuple[Passed, int] | None:
  """Where a row's state behind the visit is told; None: nothing was done."""
  if passed is not None:
    return passed.passed, slot
  return None if begun is None else (begun.passed, 0)


def progress_of(
  did: Sequence[Part], last: tuple[Passed, int] | None
) -> Progress:
  """What a visit did for a row, for the scheduler."""
  if last is None:
    return Progress((), 0)
  tokens, accepted, ended = [], [], False
  for emitted, row, _, status in did:
    ended = status != RUNNING
    tokens += emitted.picked.token[row, : emitted.count[row]].tolist()
    if emitted.cycle[row]:
      accepted.append(int(emitted.cycle[row]))
  passed, row = last
  return Progress(
    tokens=tokens,
    length=int(passed.lengths[row]),
    ended=ended,
    mid=bool(passed.middle[row]),
    accepted=accepted,
  )


def block_of(last: tuple[Passed, int] | None) -> tuple[list[int], int]:
  """The block of a row's next pass, and what that pass is."""
  if last is None:
    return [], 0
  passed, row = last
  return passed.block[row].tolist(), int(passed.phase[row])
