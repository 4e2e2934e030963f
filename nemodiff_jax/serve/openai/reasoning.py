"""Divides what a model says into its reasoning and its answer."""

from collections.abc import Sequence

from nemodiff_jax.prompts import END_THINK, START_THINK
from nemodiff_jax.text.stream import held_back
from nemodiff_jax.text.tokenizer import Tokenizer


class Reasoning:
  """Text in, (reasoning, answer) out; the same however it was cut.

  The end of thinking is a text, or a special token that no text shows.
  """

  def __init__(self, tokenizer: Tokenizer, opened: bool):
    """`opened`: the prompt ends inside of reasoning."""
    self._tokenizer = tokenizer
    self._end = tokenizer.id_of(END_THINK)
    hidden = self._end is not None and not tokenizer.decode([self._end] * 2)
    self._hidden = hidden
    self._start = tokenizer.id_of(START_THINK) if hidden else None
    self._inside: bool | None = True if opened else None  # None: undecided.
    self._ids: list[int] = []
    self._said = 0  # Characters told so far, of either kind.
    self._turn: int | None = None  # Characters before a hidden end.
    self._buffer = ""
    self.tokens = 0  # Of the reasoning.

  def push(self, text: str, ids: Sequence[int]) -> tuple[str, str]:
    """What is certain after more text, which the ids so far have made."""
    self._ids += ids
    if self._hidden:
      return self._by_tokens(text, ids)
    self._buffer += text
    return self._by_text()

  def close(self) -> tuple[str, str]:
    """What was held back."""
    rest, self._buffer = self._buffer, ""
    return (rest, "") if self._inside else ("", rest)

  def _by_tokens(self, text: str, ids: Sequence[int]) -> tuple[str, str]:
    if self._inside is None and self._ids:
      self._inside = self._ids[0] == self._start
    if not self._inside and self._turn is None:
      return "", text
    if self._turn is None and self._end in self._ids:
      self.tokens = self._ids.index(self._end)
      self._turn = len(self._tokenizer.decode(self._ids[: self.tokens]))
      self._inside = False
    elif self._turn is None:
      self.tokens = len(self._ids)
      self._said += len(text)
      return text, ""
    cut = max(0, self._turn - self._said)
    self._said += len(text)
    return text[:cut], text[cut:]

  def _by_text(self) -> tuple[str, str]:
    if self._inside is None:
      begun = self._buffer.lstrip()
      if begun.startswith(START_THINK):
        self._inside, self._buffer = True, begun[len(START_THINK) :]
      elif begun and not START_THINK.startswith(begun):
        self._inside = False
      else:
        return "", ""
    if not self._inside:
      said, self._buffer = self._buffer, ""
      return "", said
    self.tokens = len(self._ids)
    at = self._buffer.find(END_THINK)
    if at < 0:
      cut = len(self._buffer) - held_back(self._buffer, [END_THINK])
      said, self._buffer = self._buffer[:cut], self._buffer[cut:]
      return said, ""
    said, rest = self._buffer[:at], self._buffer[at + len(END_THINK) :]
    self._inside, self._buffer = False, ""
    return said, rest
