"""Log-probabilities in the forms of the protocols."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from nemodiff_jax.decode.results import Logprobs
from nemodiff_jax.serve.served import Served

FLOOR = -9999.0  # JSON has no -inf.


@dataclasses.dataclass(frozen=True)
class Spelling:
  """How tokens are written; `as_ids`: every one as token_id:N."""

  served: Served
  as_ids: bool = False

  def bytes(self, token: int) -> list[int] | None:
    """UTF-8 of a token; None where it has no text."""
    piece = self.served.bytes_of(token)
    return None if piece is None else list(piece)

  def width(self, token: int) -> int:
    """Characters of a token in the text that holds it."""
    piece = self.served.bytes_of(token) or b""
    return len(piece.decode("utf-8", "replace"))

  def text(self, token: int) -> str:
    """A token's text, or its id."""
    return f"token_id:{token}" if self.as_ids else self.served.spelled(token)


def chat(
  spelling: Spelling, ids: Sequence[int], found: Logprobs
) -> list[dict[str, Any]]:
  """Entries of `logprobs.content`, one per token."""

  def entry(token: int, value: float | None) -> dict[str, Any]:
    return {
      "token": spelling.text(token),
      "logprob": floored(value),
      "bytes": spelling.bytes(token),
    }

  return [
    entry(token, value)
    | {"top_logprobs": [entry(*pair) for pair in zip(*top, strict=True)]}
    for token, value, top in _rows(ids, found)
  ]


def completion(
  spelling: Spelling, ids: Sequence[int], found: Logprobs, offset: int
) -> dict[str, Any]:
  """`logprobs` of a completion, whose text begins at character `offset`."""
  made: dict[str, Any] = {
    "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []
  }  # fmt: skip
  for token, value, (top_ids, top) in _rows(ids, found):
    text = spelling.text(token)
    best = {
      spelling.text(i): floored(v) for i, v in zip(top_ids, top, strict=True)
    }
    made["tokens"].append(text)
    made["token_logprobs"].append(None if value is None else floored(value))
    made["top_logprobs"].append(
      None if value is None else {text: floored(value)} | best
    )
    made["text_offset"].append(offset)
    offset += spelling.width(token)
  return made


def prompt(
  spelling: Spelling, ids: Sequence[int], found: Logprobs
) -> list[dict[str, Any] | None]:
  """VLLM's `prompt_logprobs`: by token id, null for the first."""

  def entry(token: int, value: float, rank: int | None) -> dict[str, Any]:
    return {
      "logprob": floored(value),
      "rank": rank,
      "decoded_token": spelling.text(token),
    }

  rows: list[dict[str, Any] | None] = []
  for token, value, (top_ids, top) in _rows(ids, found):
    if value is None:
      rows.append(None)
      continue
    best = {
      str(i): entry(i, v, rank)
      for rank, (i, v) in enumerate(zip(top_ids, top, strict=True), 1)
    }
    rows.append({str(token): entry(token, value, None)} | best)
  return rows


def joined(parts: Sequence[Logprobs]) -> Logprobs:
  """Log-probabilities of tokens in a row of events."""
  return Logprobs(
    [x for p in parts for x in p.token],
    [x for p in parts for x in p.top_ids],
    [x for p in parts for x in p.top],
  )


def floored(value: float | None) -> float:
  """A number that JSON can write."""
  return FLOOR if value is None else max(value, FLOOR)


def _rows(ids: Sequence[int], found: Logprobs):
  tops = zip(found.top_ids, found.top, strict=True)
  return zip(ids, found.token, tops, strict=True)
