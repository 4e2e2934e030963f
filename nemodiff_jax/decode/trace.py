"""What happened in every pass over one row, as plain data."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from nemodiff_jax.decode.generate import Moment

PHASES = {
  "ar": ("ar", "ar"),
  "diffusion": ("denoise", "commit"),
  "linear_spec": ("draft", "verify"),
  "quadratic_spec": ("quadratic", "quadratic"),
}


def trace_passes(moments: Iterable[Moment]) -> Iterator[dict[str, Any]]:
  """One entry per pass of row 0, from moments of a traced run.

  An entry holds: `nfe` after the pass; `phase`, what the pass was; `start`,
  the position of slot 0; `canvas`, the block that went in (the mask id is an
  open slot); `proposed` and `confidence` of each slot; `revealed`, the slots
  that a denoising or draft pass filled; `accepted`, tokens that a verification
  confirmed; `tokens`, the output after the pass; `ended`.
  """
  before = None
  for moment in moments:
    now = _row(moment)
    if before is not None:
      yield _entry(moment.config.mode, before, now)
    before = now


def _row(moment: Moment) -> dict[str, Any]:
  """What a trace needs of row 0, copied to the host."""
  state = moment.state
  kept = {
    "block": state.block.token[0],
    "proposed": state.proposed,
    "tokens": state.output.token[0],
    "accepted": state.accepted[0],
  }
  for name in ("phase", "lengths", "count", "nfe", "cycles", "status"):
    kept[name] = getattr(state, name)[0]
  return jax.tree.map(np.asarray, jax.device_get(kept))


def _entry(
  mode: str, before: dict[str, Any], now: dict[str, Any]
) -> dict[str, Any]:
  phase = PHASES[mode][int(before["phase"])]
  proposed = now["proposed"]
  entry: dict[str, Any] = {
    "nfe": int(now["nfe"]),
    "phase": phase,
    "start": int(before["lengths"]),
    "canvas": before["block"].tolist(),
    "proposed": proposed.token[0].tolist(),
    "confidence": [round(float(c), 4) for c in proposed.confidence[0]],
  }
  if phase in ("denoise", "draft"):
    changed = before["block"] != now["block"]
    entry["revealed"] = np.flatnonzero(changed).tolist()
  if now["cycles"] > before["cycles"]:
    entry["accepted"] = int(now["accepted"][before["cycles"]])
  entry["tokens"] = now["tokens"][: now["count"]].tolist()
  entry["ended"] = bool(now["status"])
  return entry
