"""What happened in every pass over one row, as plain data."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from nemodiff_jax.decode.generate import Step
from nemodiff_jax.decode.modes import MODES


def trace_passes(steps: Iterable[Step]) -> Iterator[dict[str, Any]]:
  """One entry per pass of row 0, from the steps of a traced run.

  An entry holds: `nfe` after the pass; `phase`, what the pass was; `start`,
  the position of slot 0; `canvas`, the block that went in (the mask id is an
  open slot); `proposed` and `confidence` of each slot; `revealed`, the slots
  that a denoising or draft pass filled; `accepted`, tokens that a verification
  confirmed; `tokens`, the output after the pass; `ended`.
  """
  before = None
  for step in steps:
    now = _row(step)
    if before is not None:
      yield _entry(step, before, now)
    before = now


def _row(step: Step) -> dict[str, Any]:
  """What the next pass of row 0 begins with, copied to the host."""
  state = step.state
  kept = {"block": state.block.token, "phase": state.phase}
  kept["lengths"] = state.lengths
  return {k: np.asarray(x)[0] for k, x in jax.device_get(kept).items()}


def _entry(
  step: Step, before: dict[str, Any], now: dict[str, Any]
) -> dict[str, Any]:
  mode, phase = MODES[step.config.mode], int(before["phase"])
  output, proposed = step.outputs[0], step.emitted.proposed
  if proposed is None:
    raise ValueError("a trace needs the steps of a run with traced=True.")
  entry: dict[str, Any] = {
    "nfe": output.nfe,
    "phase": mode.phases[phase],
    "start": int(before["lengths"]),
    "canvas": before["block"].tolist(),
    "proposed": proposed.token[0].tolist(),
    "confidence": [round(float(c), 4) for c in proposed.confidence[0]],
  }
  if mode.reveals and phase == 0:
    changed = before["block"] != now["block"]
    entry["revealed"] = np.flatnonzero(changed).tolist()
  if step.emitted.cycle[0]:
    entry["accepted"] = int(step.emitted.cycle[0])
  entry["tokens"] = list(output.token_ids)
  entry["ended"] = bool(output.status)
  return entry
