"""Infilling: texts with holes, filled by diffusion."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from nemodiff_jax.api import Model, prepare, split_settings
from nemodiff_jax.decode.config import DecodeConfig, RowSettings, check_prompt
from nemodiff_jax.engines import open_engine
from nemodiff_jax.errors import UserError
from nemodiff_jax.prompts import Prompt
from nemodiff_jax.serve.contract import Adjustments
from nemodiff_jax.serve.engine import Engine
from nemodiff_jax.text.holes import Hole, check_no_mask, inner_ids, split
from nemodiff_jax.text.tokenizer import Tokenizer

SETTINGS = (
  "block_length", "threshold", "steps_per_block", "temperature", "top_k",
  "top_p", "min_p", "seed",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class InfillOutput:
  """A text whose holes are filled.

  Attributes:
    text: all of it; what was given is in it as it was.
    fills: text of each hole.
    token_ids: tokens of each hole, without an EOS that ended it.
    nfe: forward passes, by the counting of diffusion.
    tokens_per_forward: tokens that were filled in / nfe; None when nfe is 0.
  """

  text: str
  fills: list[str]
  token_ids: list[list[int]]
  nfe: int
  tokens_per_forward: float | None


def infill(
  model: Model, text: str, prompt: Prompt | None = None, **settings: Any
) -> InfillOutput:
  """Fills the holes of a text, in turn, each by diffusion.

  `{mask:12}` is a hole of 12 tokens, `{mask:1-12}` one that an EOS may end
  earlier. A block begins at its hole, so that of what follows a hole of H
  tokens the next block_length - H are seen; a later hole is open in it. All
  that stands before is seen. What is given never changes.

  Args:
    model: from `load`.
    text: with holes.
    prompt: what the text follows, such as the messages that it answers.
    **settings: block_length, threshold, steps_per_block, temperature, top_k,
      top_p, min_p, seed.

  Raises:
    UserError: no hole, one of no tokens, a text with the mask token, a setting
      that is not one of these, or a checkpoint without a mask token.
  """
  for name in settings:
    if name not in SETTINGS:
      raise UserError(
        f"unknown setting {name!r} of infilling; known are"
        f" {', '.join(SETTINGS)}."
      )
  row, config = split_settings(model, "diffusion", dict(settings))
  before = [] if prompt is None else prepare(model, prompt, row)
  return fill(model, config, row, text, before)


def fill(
  model: Model,
  config: DecodeConfig,
  row: RowSettings,
  text: str,
  prompt: Sequence[int] = (),
) -> InfillOutput:
  """As `infill`, with settings that were checked; `prompt` as ids, or none."""
  if model.tokenizer is None:
    raise UserError("infilling needs a tokenizer; there is none.")
  tokenizer, mask = model.tokenizer, model.config.mask_id
  texts, holes = split(text)
  first, *others = texts
  if prompt:
    front = [*prompt, *inner_ids(tokenizer, first, mask)]
  else:
    check_no_mask(tokenizer, first, mask)
    front = tokenizer.encode(first)
  if not front:
    raise UserError(
      "the text should not begin with a hole: this tokenizer has no token for"
      " the beginning of a text."
    )
  given = [front, *(inner_ids(tokenizer, t, mask) for t in others)]
  ids, nfe = _fill(model, config, row, given, holes)
  fills = _spell(tokenizer, given, ids)
  whole = first + "".join(f + t for f, t in zip(fills, others, strict=True))
  count = sum(map(len, ids))
  return InfillOutput(whole, fills, ids, nfe, count / nfe if nfe else None)


def _fill(
  model: Model,
  config: DecodeConfig,
  row: RowSettings,
  given: Sequence[Sequence[int]],
  holes: Sequence[Hole],
) -> tuple[list[list[int]], int]:
  """Ids of each hole, and the passes that they took."""
  longest = sum(map(len, given)) + sum(hole.most for hole in holes)
  whole = dataclasses.replace(row, max_new_tokens=longest)
  engine = open_engine(
    model, config, rows=1, max_length=longest, settings=[whole]
  )
  before, ids, nfe = list(given[0]), [], 0
  for i, hole in enumerate(holes):
    own = dataclasses.replace(
      row,
      max_new_tokens=hole.most,
      following=_following(model, given[i + 1 :], holes[i + 1 :]),
    )
    check_prompt(before, own, model.config)
    found, passes = _one(engine, before, own, hole.least)
    if found and found[-1] in model.config.eos_ids:
      found = found[:-1]
    ids.append(found)
    nfe += passes
    before += [*found, *given[i + 1]]
  return ids, nfe


def _following(
  model: Model, given: Sequence[Sequence[int]], holes: Sequence[Hole]
) -> list[int]:
  """What stands behind a hole; later ones as masks."""
  ids = list(given[0])
  for hole, after in zip(holes, given[1:], strict=True):
    ids += [model.config.mask_id or 0] * hole.most
    ids += after
  return ids


def _one(
  engine: Engine, before: Sequence[int], row: RowSettings, least: int
) -> tuple[list[int], int]:
  """Tokens of one hole, and its passes; an EOS may stand behind `least`."""
  made = engine.submit(before, row, changes=Adjustments(min_tokens=least))
  while not made.ended:
    engine.step()
  return made.output.token_ids, made.output.nfe


def _spell(
  tokenizer: Tokenizer,
  given: Sequence[Sequence[int]],
  ids: Sequence[Sequence[int]],
) -> list[str]:
  """What the tokens of each hole add to the text before them."""
  before, fills = list(given[0]), []
  for found, after in zip(ids, given[1:], strict=True):
    known, now = tokenizer.decode(before), tokenizer.decode([*before, *found])
    inside = now.startswith(known)
    fills.append(now[len(known) :] if inside else tokenizer.decode(found))
    before += [*found, *after]
  return fills
