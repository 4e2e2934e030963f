"""Cuts texts at tokens that are matched whole."""

import re
from collections.abc import Iterable, Iterator, Mapping

from nemodiff_jax.text.special_tokens import AddedToken


class Cuts:
  """Finds tokens by their names, the longest first.

  Attributes:
    ids: of the names.
  """

  def __init__(self, tokens: Iterable[AddedToken], ids: Mapping[str, int]):
    """Tokens and the ids of (at least) their names."""
    longest = sorted(tokens, key=lambda t: -len(t.content))
    self.ids = {t.content: ids[t.content] for t in longest}
    whole = "|".join(map(_pattern, longest))
    self._pattern = re.compile(whole) if whole else None

  def cut(self, text: str) -> Iterator[tuple[int, int, int | None]]:
    """(start, end, id) of the parts of a text; id None: plain text between."""
    at = 0
    for found in self._pattern.finditer(text) if self._pattern else ():
      if at < found.start():
        yield at, found.start(), None
      name = found[0] if found[0] in self.ids else found[0].strip()
      yield found.start(), found.end(), self.ids[name]
      at = found.end()
    if at < len(text):
      yield at, len(text), None

  def apart(self, text: str) -> list[str]:
    """The text in parts, cut inside of every token: none is whole."""
    places = [start + 1 for start, _, i in self.cut(text) if i is not None]
    ends = [*places, len(text)]
    return [text[a:b] for a, b in zip([0, *places], ends, strict=True)]


def _pattern(token: AddedToken) -> str:
  name = re.escape(token.content)
  if token.single_word:
    name = rf"(?<!\w){name}(?!\w)"
  return r"\s*" * token.lstrip + name + r"\s*" * token.rstrip
