"""One row's way through its grammar: masks for draft slots, forced tokens.

The library's rules about EOS differ from state to state, so it never sees one:
an EOS is legal where the grammar may end, and nothing follows it.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np


class Matcher:
  """A place in a grammar.

  Attributes:
    dead: whether a token was accepted that the grammar does not have.
  """

  def __init__(
    self, inner: Any, size: int, eos_ids: Sequence[int], after: int | None
  ):
    """Wraps llguidance's matcher; see `structured.Grammars.matcher`."""
    self.dead = False
    self._inner = inner
    self._size = size
    self._eos = frozenset(eos_ids)
    self._after = after  # None once the grammar has begun.

  def masks(self, draft: Sequence[int]) -> np.ndarray:
    """Which ids may stand in each slot of a draft, and in the one behind it.

    Args:
      draft: [L] ids, legal or not.

    Returns:
      int32 [L + 1, ceil(size / 32)], bit i of word w: id 32 w + i. Slots behind
      one that is not legal, or behind an EOS, are all ones: they are not read.
    """
    from llguidance import numpy as bits

    draft = [int(i) for i in draft]
    mask = bits.allocate_token_bitmask(len(draft) + 1, self._size)
    first, rest = self._begun(draft)
    if first is None:
      return mask
    ends = [i for i, token in enumerate(rest) if token in self._eos]
    rest = rest[: ends[0]] if ends else rest
    if rest:
      bits.fill_next_token_bitmask_par_with_draft_tokens(
        _executor(), [(self._inner, first, rest)], mask
      )
    else:
      bits.fill_next_token_bitmask(self._inner, mask, first)
    return mask

  def accept(self, tokens: Sequence[int]) -> None:
    """Goes on by tokens that the row emitted; an EOS changes nothing."""
    first, rest = self._begun([int(i) for i in tokens])
    if first is None:
      return
    self._after = None
    plain = [i for i in rest if i not in self._eos]
    if self._inner.try_consume_tokens(plain) < len(plain):
      self.dead = True

  def forced(self) -> list[int]:
    """Tokens that have to come next, as far as they are certain."""
    if self._after is not None or self._inner.is_stopped():
      return []
    return list(self._inner.compute_ff_tokens())

  def may_end(self) -> bool:
    """Whether the output is complete as it is."""
    return self._after is None and self._inner.is_accepting()

  def must_end(self) -> bool:
    """Whether nothing but an EOS can follow."""
    return self._after is None and self._inner.is_stopped()

  def fresh(self) -> "Matcher":
    """A copy that goes its own way."""
    return Matcher(
      self._inner.deep_copy(), self._size, sorted(self._eos), self._after
    )

  def _begun(self, tokens: list[int]) -> tuple[int | None, list[int]]:
    """Where in `tokens` the grammar begins, and what is behind that."""
    if self._after is None:
      return 0, tokens
    if self._after not in tokens:
      return None, []
    start = tokens.index(self._after) + 1
    return start, tokens[start:]


@functools.cache
def _executor() -> Any:
  """Threads of the library; one set per process is enough."""
  from llguidance import LLExecutor

  return LLExecutor(num_threads=1)
