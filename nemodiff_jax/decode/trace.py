"""What happened in every pass over one row, as plain data."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import struct
from jaxtyping import Array, Int

from nemodiff_jax.decode.generate import Step
from nemodiff_jax.decode.modes import MODES
from nemodiff_jax.decode.state import DecodeState, Emitted

PROMPT = "prompt"  # The phase of the entry before the first pass.


@struct.dataclass
class Before:
  """What rows begin a pass with.

  Attributes:
    block: [B, C] tokens that go in; the mask id is an open slot.
    phase: [B] what the pass is, by Mode.phases.
    start: [B] position of slot 0.
  """

  block: Int[Array, "B C"]
  phase: Int[Array, "B"]
  start: Int[Array, "B"]


def before_pass(state: DecodeState) -> Before:
  """What the next pass of a state begins with."""
  return Before(state.block.token, state.phase, state.lengths)


def trace_passes(steps: Iterable[Step]) -> Iterator[dict[str, Any]]:
  """What the prompt gave, and every pass of row 0 of a traced run.

  See `entry`; the one of the prompt is there even if it gave no token.
  """
  was, said = None, 0
  for step in steps:
    now = jax.device_get(before_pass(step.state))
    now = jax.tree.map(np.array, now)  # The next pass takes the memory.
    output = step.outputs[0]
    tokens = output.token_ids[said:]
    said = len(output.token_ids)
    if was is None:
      made = prompt_entry(output.nfe, tokens)
    else:
      names = MODES[step.config.mode].phases
      phase = names[int(was.phase[0])]
      made = entry(phase, 0, was, now.block, step.emitted, output.nfe, tokens)
    yield made | {"ended": bool(output.status)}
    was = now


def prompt_entry(nfe: int, tokens: Sequence[int]) -> dict[str, Any]:
  """The entry of the prompt: no slots, and maybe the first token."""
  made: dict[str, Any] = {"nfe": nfe, "phase": PROMPT, "start": 0}
  none: dict[str, Any] = {"canvas": [], "proposed": [], "confidence": []}
  return made | none | {"tokens": list(tokens)}


def entry(
  phase: str,
  row: int,
  was: Before,
  after: Any,
  emitted: Emitted,
  nfe: int,
  tokens: Sequence[int],
) -> dict[str, Any]:
  """One pass over a row.

  An entry holds: `nfe` after the pass; `phase`, what the pass was; `start`,
  the position of slot 0; `canvas`, the block that went in (the mask id is an
  open slot); `proposed` and `confidence` of each slot; `revealed`, the slots
  that a denoising or draft pass filled; `accepted`, tokens that a verification
  confirmed; `tokens`, which it added to the output.

  Args:
    phase: its name.
    row: of the arrays.
    was: what the pass began with.
    after: [B, C] the block behind it.
    emitted: by the pass, with what it proposed.
    nfe: behind it.
    tokens: of the row, as far as the output holds them.
  """
  proposed = emitted.proposed
  if proposed is None:
    raise ValueError("a trace needs the passes of a decoder with traced=True.")
  canvas = np.asarray(was.block[row])
  made: dict[str, Any] = {
    "nfe": nfe,
    "phase": phase,
    "start": int(was.start[row]),
    "canvas": canvas.tolist(),
    "proposed": np.asarray(proposed.token[row]).tolist(),
    "confidence": [round(float(c), 4) for c in proposed.confidence[row]],
  }
  if phase in ("denoise", "draft"):
    made["revealed"] = np.flatnonzero(canvas != after[row]).tolist()
  if emitted.cycle[row]:
    made["accepted"] = int(emitted.cycle[row])
  return made | {"tokens": list(tokens)}
