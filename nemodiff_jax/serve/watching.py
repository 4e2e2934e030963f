"""The passes of a visit as those see them who watch a row."""

from collections.abc import Sequence
from typing import Any

from nemodiff_jax.decode.mode import Mode
from nemodiff_jax.decode.state import RUNNING
from nemodiff_jax.decode.trace import Before, entry, prompt_entry
from nemodiff_jax.serve.readout import Told


def watched(
  mode: Mode,
  begun: Told | None,
  passed: Told | None,
  slot: int,
  tokens: Sequence[int],
) -> list[dict[str, Any]]:
  """What the prompt gave, if it was read to its end, and every pass of a row.

  Args:
    mode: of the engine.
    begun: the row as it began; None: it began before.
    passed: the passes of the visit; None: the row was in none.
    slot: of the row.
    tokens: that the row's output took of the visit.
  """
  found, left = [], list(tokens)

  def take(count: int) -> list[int]:
    nonlocal left
    taken, left = left[:count], left[count:]
    return taken

  ended = False
  for emitted, row, nfe, status in [] if begun is None else begun.row(0):
    found.append(prompt_entry(nfe, take(int(emitted.count[row]))))
    ended = status != RUNNING
  if ended or passed is None or passed.passed.before is None:
    return found
  before, last, ran = passed.passed.before, passed.passed.block, -1
  for i, (emitted, row, nfe, _) in enumerate(passed.row(slot)):
    if nfe == ran:  # It waited for the host.
      continue
    ran = nfe
    was = Before(before.block[i], before.phase[i], before.start[i])
    inner = i + 1 < len(passed.emitted)
    after = before.block[i + 1] if inner else last
    phase = mode.phases[int(was.phase[row])]
    if mode.speculative and was.block.shape[1] == 1:
      phase = "ar"  # A cycle of one slot is a plain pass.
    new = take(int(emitted.count[row]))
    found.append(entry(phase, row, was, after, emitted, nfe, new))
  return found
