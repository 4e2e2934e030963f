"""What the host says of a row's next tokens: which may come, which will."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

_CONTEXT = 8  # Tokens of the output by which a prediction is found again.


class Matcher(Protocol):
  """A place in a grammar; see `matcher.Matcher`."""

  def masks(self, draft: Sequence[int]) -> np.ndarray:
    """[L + 1, words] of each slot of a draft, and of the one behind it."""
    ...

  def accept(self, tokens: Sequence[int]) -> None:
    """Goes on by tokens that the row emitted."""
    ...

  def forced(self) -> Sequence[int]:
    """Tokens that have to come next."""
    ...


class Guide:
  """Grammar, forbidden words and prediction of one row, as its output grows.

  Attributes:
    predicted: tokens of the output that were drafts of the prediction.
    block: tokens of the row's next pass, as the last one left them.
    phase: what that pass is.
  """

  def __init__(
    self,
    vocab: int,
    grammar: Matcher | None = None,
    words: Sequence[Sequence[int]] = (),
    prediction: Sequence[int] = (),
  ):
    """Before the first token.

    Args:
      vocab: ids that logits are for.
      grammar: a fresh matcher; None: any text.
      words: sequences of ids that are not said, of two ids or more.
      prediction: ids that the output is expected to hold.
    """
    self.predicted = 0
    self.block: list[int] = []
    self.phase = 0
    self._free = np.full(-(-vocab // 32), -1, np.int32)
    self._grammar = grammar
    self._words = [tuple(w) for w in words]
    self._prediction = list(prediction)
    self._at: int | None = 0  # Of the prediction: what comes next.
    self._said: list[int] = []
    self._proposed = 0

  def masks(self, draft: Sequence[int]) -> np.ndarray:
    """Which ids may stand in each slot of a draft, and behind it.

    Args:
      draft: [L] ids behind those that were emitted.

    Returns:
      int32 [L + 1, ceil(vocab / 32)], bit i of word w: id 32 w + i.
    """
    found = np.tile(self._free, (len(draft) + 1, 1))
    if self._grammar is not None:
      found = np.array(self._grammar.masks(draft), np.int32)
    before = self._said[-max(map(len, self._words), default=1) :]
    context = [*before, *draft]  # Of slot i, what lies before it.
    for slot in range(len(draft) + 1) if self._words else ():
      end = len(before) + slot
      for word in self._words:
        if tuple(context[max(end + 1 - len(word), 0) : end]) == word[:-1]:
          index, bit = divmod(word[-1], 32)
          keep = ~np.array(1 << bit, np.uint32)
          found[slot, index] &= keep.astype(np.int32)
    return found

  @property
  def closed(self) -> bool:
    """Whether it has a grammar, behind whose end nothing can be said."""
    return self._grammar is not None

  def propose(self, size: int) -> list[int]:
    """Up to `size` tokens that are likely to come next."""
    if self._grammar is not None and (forced := self._grammar.forced()):
      self._proposed = 0
      return list(forced[:size])
    if self._at is None:
      return []
    found = self._prediction[self._at : self._at + size]
    self._proposed = len(found)
    return found

  def accept(self, tokens: Sequence[int], cycle: int) -> None:
    """Goes on by what a pass emitted; `cycle` as in `Emitted`."""
    if cycle:
      self.predicted += min(self._proposed, cycle - 1)
      self._proposed = 0
    self._said += tokens
    if self._grammar is not None:
      self._grammar.accept(tokens)
    for token in tokens:
      self._follow(token)

  def _follow(self, token: int) -> None:
    """Keeps the place in the prediction, or looks for it again."""
    if not self._prediction:
      self._at = None
      return
    at = self._at
    if at is not None and self._prediction[at : at + 1] == [token]:
      self._at = at + 1
      return
    # The longest end of the output that the prediction holds, the first place
    # behind the last one: an output leaves out more often than it repeats.
    for length in range(min(_CONTEXT, len(self._said)), 0, -1):
      end = self._said[-length:]
      starts = range(len(self._prediction) - length)
      places = [
        s + length for s in starts if self._prediction[s : s + length] == end
      ]
      if places and length > 1:
        later = [p for p in places if at is None or p > at]
        self._at = min(later or places)
        return
    self._at = None
