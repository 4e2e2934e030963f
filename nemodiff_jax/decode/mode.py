"""What a decoding mode is: one frozen value, of which each mode's file has one.

A fifth mode would be one more file and one more line in `modes`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Mode:
  """How a mode decodes, and what the rest has to know of it.

  Attributes:
    name: as a caller says it.
    begin: (decoder, weights, state, hidden [B, n, D]) -> (state, Emitted):
      from the hidden states of the last prompt token and, with prefill_masks,
      of the masks 2..C behind it.
    step: (decoder, weights, state) -> (state, Emitted): one pass.
    phases: what a pass is for a row, by DecodeState.phase.
    queries: tokens of a pass, of the block length C.
    uses_blocks: whether it has blocks of C tokens; else C is 1.
    default_block: C where the checkpoint's block size is not used.
    masked: whether it puts the mask id into its passes.
    reveals: whether passes of phase 0 reveal slots by confidence.
    prefill_masks: whether C masks follow the prompt in its last chunk.
    drafter: whether it uses the drafter LoRA.
    speculative: whether drafts are verified, so that cycles are counted.
    settings: names of the settings of a row that it alone has.
  """

  name: str
  begin: Callable[..., Any]
  step: Callable[..., Any]
  phases: tuple[str, ...]
  queries: Callable[[int], int] = lambda block: block
  uses_blocks: bool = True
  default_block: int | None = None
  masked: bool = True
  reveals: bool = False
  prefill_masks: bool = False
  drafter: bool = False
  speculative: bool = False
  settings: tuple[str, ...] = ()

  def masks(self, block: int) -> int:
    """Masks behind the prompt, of the block length C."""
    return block if self.prefill_masks else 0
