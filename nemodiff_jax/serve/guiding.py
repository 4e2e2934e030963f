"""What the host says of a visit's first pass, as arrays of its slots."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from nemodiff_jax.decode.state import Decoder
from nemodiff_jax.serve.guide import Guide
from nemodiff_jax.serve.steps import Guides


def first_slots(decoder: Decoder) -> int:
  """Tokens that a mode reads when a row begins."""
  return decoder.block if decoder.mode.prefill_masks else 1


def no_guides(rows: int, width: int, words: int) -> Guides:
  """Rows that may say anything.

  Args:
    rows: slots of the visit.
    width: tokens of a pass.
    words: of a mask.
  """
  mask: Any = np.full((rows, width, words), -1, np.int32)
  zeros: Any = lambda *shape, kind=np.int32: np.zeros((rows, *shape), kind)
  return Guides(
    mask=mask,
    draft=zeros(width),
    phase=zeros(),
    given=zeros(kind=bool),
    once=zeros(kind=bool),
  )


def make_guides(
  decoder: Decoder, rows: int, width: int, guided: Mapping[int, Guide]
) -> Guides:
  """What guides say of the next pass.

  Args:
    decoder: static part.
    rows: slots of the visit.
    width: tokens of a pass.
    guided: by slot, rows that run.
  """
  words = -(-decoder.module.config.vocab_size // 32)
  out = no_guides(rows, width, words)
  for slot, guide in guided.items():
    out.once[slot] = True
    _guide_row(decoder, out, slot, guide, width)
  return out


def first_mask(decoder: Decoder, guide: Guide | None) -> Any:
  """[1, T, words] of the tokens that are read when a row begins."""
  words = -(-decoder.module.config.vocab_size // 32)
  mask = np.full((1, first_slots(decoder), words), -1, np.int32)
  if guide is not None:
    mask[0, 0] = guide.masks([])[0]
  return mask


def _guide_row(
  decoder: Decoder, out: Guides, slot: int, guide: Guide, width: int
) -> None:
  mode: Any = decoder.mode
  if width == 1:
    out.mask[slot] = guide.masks([])
    return
  block, phase = list(guide.block[:width]), guide.phase
  block += [decoder.mask_id] * (width - len(block))
  drafts = mode.phases[phase] == "draft"
  fresh = all(t == decoder.mask_id for t in block[1:]) or not drafts
  if fresh and (drafts or mode.prefill_masks):
    if known := guide.propose(width - 1):
      block[1 : 1 + len(known)] = known
      if drafts and len(known) == width - 1:  # Nothing is left to draft.
        phase, drafts = mode.phases.index("verify"), False
      out.given[slot] = True
      out.draft[slot], out.phase[slot] = block, phase
  if not drafts:
    out.mask[slot] = guide.masks(block[1:])
