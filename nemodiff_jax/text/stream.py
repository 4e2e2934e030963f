"""Text of a growing list of tokens, as it becomes certain.

Tokens may arrive one at a time or a block at a time: the text that comes out is
the same. A character is held back until all its bytes are there, and whatever
might be the beginning of a stop string until it is clear that it is not.
"""

from collections.abc import Sequence

from nemodiff_jax.errors import UserError
from nemodiff_jax.text.tokenizer import Tokenizer

MAX_STOPS = 16
_BROKEN = "\ufffd"  # What a decoder shows for bytes that are no character yet.
# Some decoders break a whole run of byte tokens if its end is no character.
_LAST_BYTE = "<0xFF>"


class TextStream:
  """Turns tokens into text that never has to be taken back.

  Attributes:
    stopped: whether a stop string has been completed.
    matched: which; None: none.
    text: all the text so far that is certain, without the stop string.
  """

  def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()):
    self.stopped = False
    self.matched: str | None = None
    self.text = ""
    self._tokenizer = tokenizer
    self._stops = tuple(stops)
    probe = tokenizer.id_of(_LAST_BYTE)
    self._probe = [] if probe is None else [probe]
    self._ids: list[int] = []
    self._window = 0  # Tokens from here on are decoded together.
    self._known = 0  # Tokens whose text is in _buffer.
    self._buffer = ""  # All decoded text, held back or not.
    self._closed = False

  def push(self, token: int) -> bool:
    """Adds a token; returns whether it completes a stop string."""
    if self.stopped:
      return True
    self._ids.append(token)
    decode = self._tokenizer.decode
    before = decode(self._ids[self._window : self._known])
    now = decode(self._ids[self._window :])
    if not now.startswith(before):
      return False
    new = now[len(before) :]
    if not self._certain(now):  # A whole stop string in it ends it as it is.
      return self._find_stop(new.rstrip(_BROKEN))
    # Decoders take a space off the first token that has a text: the window
    # begins with one that has some left.
    if decode(self._ids[self._known :]):
      self._window = self._known
    self._known = len(self._ids)
    return self._add(new)

  def close(self) -> str:
    """Ends the stream: nothing is held back any more. Returns the text.

    A closed stream stays as it is.
    """
    if not self.stopped and not self._closed:
      self._closed = True
      before = self._tokenizer.decode(self._ids[self._window : self._known])
      rest = self._tokenizer.decode(self._ids[self._window :])
      if not self._add(rest[len(before) :]):
        self.text = self._buffer
    return self.text

  def _certain(self, now: str) -> bool:
    """Whether no further token can change this end of the text."""
    if now.endswith(_BROKEN):
      return False
    if not self._probe:
      return True
    more = self._tokenizer.decode(self._ids[self._window :] + self._probe)
    return more.startswith(now)

  def _add(self, new: str) -> bool:
    if self._find_stop(new):
      return True
    self._buffer += new
    self.text = self._buffer[
      : len(self._buffer) - held_back(self._buffer, self._stops)
    ]
    return False

  def _find_stop(self, new: str) -> bool:
    """Ends the text before the first stop string, if there is one."""
    start = max(0, len(self._buffer) - max(map(len, self._stops), default=0))
    whole = self._buffer + new
    found = [(at, s) for s in self._stops if (at := whole.find(s, start)) >= 0]
    if found:
      self.stopped = True
      at, self.matched = min(found)
      self.text = whole[:at]
    return bool(found)


def held_back(text: str, ends: Sequence[str]) -> int:
  """Length of the longest end of a text that may begin one of `ends`."""
  longest = 0
  for end in ends:
    for size in range(min(len(end) - 1, len(text)), longest, -1):
      if text.endswith(end[:size]):
        longest = size
        break
  return longest


def check_stops(stops: str | Sequence[str]) -> tuple[str, ...]:
  """Stop strings as a tuple.

  Raises:
    UserError: an empty one, too many, or not texts.
  """
  if not isinstance(stops, (str, list, tuple)):
    raise UserError(f"stop should be a text or a list of texts, got {stops!r}.")
  given = (stops,) if isinstance(stops, str) else tuple(stops)
  if not all(isinstance(s, str) for s in given):
    raise UserError(f"stop should be a text or a list of texts, got {stops!r}.")
  if len(given) > MAX_STOPS:
    raise UserError(
      f"stop should hold at most {MAX_STOPS} texts, got {len(given)}."
    )
  if "" in given:
    raise UserError("stop should hold no empty text.")
  return given
