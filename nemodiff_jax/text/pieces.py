"""Pieces of vocabularies as the bytes that they stand for."""

import functools
import re
from collections.abc import Sequence

_SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def piece_bytes(piece: str) -> bytes:
  """Bytes of a piece as SentencePiece writes it."""
  found = _BYTE.fullmatch(piece)
  if found:
    return bytes([int(found[1], 16)])
  return piece.replace(_SPACE, " ").encode()


def level_bytes(piece: str) -> bytes:
  """Bytes of a piece that is written with a character for each byte."""
  table = _levels()
  if all(c in table for c in piece):
    return bytes(table[c] for c in piece)
  return piece.encode()


def spelled(pieces: Sequence[bytes | None], token: int) -> str:
  """The text of a token by itself, token_id:N where it has none."""
  piece = pieces[token] if token < len(pieces) else None
  if piece is None:
    return f"token_id:{token}"
  return piece.decode("utf-8", "replace")


@functools.cache
def _levels() -> dict[str, int]:
  """Bytes that show stand for themselves; the others follow after 255."""
  shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
  hidden = [b for b in range(256) if b not in shown]
  table = {chr(b): b for b in shown}
  return table | {chr(256 + i): b for i, b in enumerate(hidden)}
