"""Texts with holes, `{mask:12}`, as ids."""

import dataclasses
import re

from nemodiff_jax.errors import UserError
from nemodiff_jax.text.tokenizer import Tokenizer

_HOLE = re.compile(r"\{mask:([^{}]*)\}")
_SIZE = re.compile(r"(\d+)(?:-(\d+))?")
_PIVOT = "\n"  # Behind it no tokenizer puts a space of its own.


@dataclasses.dataclass(frozen=True)
class Hole:
  """A place to fill with `least` to `most` tokens."""

  least: int
  most: int


def split(text: str) -> tuple[list[str], list[Hole]]:
  """The given texts, and the holes between them: one less.

  Raises:
    UserError: no hole, or one that is not {mask:N} or {mask:M-N}.
  """
  parts = _HOLE.split(text)
  holes = [_hole(size) for size in parts[1::2]]
  if not holes:
    raise UserError(
      "the text should have a hole, such as {mask:12}; found none."
    )
  return parts[::2], holes


def _hole(size: str) -> Hole:
  found = _SIZE.fullmatch(size)
  if found is None:
    raise UserError(
      "a hole should be {mask:12} or {mask:1-12}, in tokens, got"
      f" {{mask:{size}}}."
    )
  most = int(found[2] or found[1])
  least = int(found[1])
  if not 1 <= least <= most:
    raise UserError(
      "a hole should have at least 1 token, and its lower bound first, got"
      f" {{mask:{size}}}."
    )
  return Hole(least, most)


def inner_ids(
  tokenizer: Tokenizer, text: str, mask_id: int | None
) -> list[int]:
  """Ids of a text that stands behind another: nothing is put in front.

  Raises:
    UserError: it holds the mask token.
  """
  check_no_mask(tokenizer, text, mask_id)
  front, both = tokenizer.encode(_PIVOT), tokenizer.encode(_PIVOT + text)
  if both[: len(front)] == front:
    return both[len(front) :]
  return tokenizer.encode(text)[len(tokenizer.encode("")) :]


def check_no_mask(tokenizer: Tokenizer, text: str, mask_id: int | None) -> None:
  """Raises a UserError if a text has the mask token written out."""
  if mask_id in tokenizer.encode_rendered(text):
    raise UserError(
      "the text holds the mask token; write what is to be filled as {mask:12}."
    )
