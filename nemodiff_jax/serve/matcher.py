"""One row's way through its grammar: masks for draft slots, forced tokens.

The library's rules about EOS differ from state to state, so it never sees one:
an EOS is legal where the grammar may end, and nothing follows it.
"""

import functools
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np


class Matcher:
  """A place in a grammar.

  Attributes:
    dead: whether a token was accepted that the grammar does not have.
  """

  def __init__(
    self,
    inner: Any,
    plain: np.ndarray,
    eos_ids: Sequence[int],
    after: int | None,
  ):
    """Wraps llguidance's matcher; see `structured.Grammars.matcher`.

    `plain` are the ids that text may have, and EOS, as words of `pack`.
    """
    self.dead = False
    self._inner = inner
    self._plain = plain
    self._end = pack(eos_ids, 32 * len(plain))
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
    mask = bits.allocate_token_bitmask(len(draft) + 1, 32 * len(self._plain))
    first, rest = self._begun(draft)
    if first is None:
      return mask
    ends = [i for i, token in enumerate(rest) if token in self._eos]
    rest = rest[: ends[0]] if ends else rest
    if rest:  # A copy: a draft that leads to a dead end kills its matcher.
      bits.fill_next_token_bitmask_par_with_draft_tokens(
        _executor(), [(self._inner.deep_copy(), first, rest)], mask
      )
    else:
      bits.fill_next_token_bitmask(self._inner, mask, first)
    # Text that the vocabulary lacks is one unknown token to the library. Where
    # that alone may come, the output ends as it is.
    read = ~(mask == -1).all(axis=1)
    mask[read] &= self._plain
    mask[~mask.any(axis=1)] = self._end
    return mask

  def stuck(self) -> bool:
    """Whether the vocabulary has no way on, and the output is not complete."""
    return not self.may_end() and bool((self.masks([])[0] == self._end).all())

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

  def _begun(self, tokens: list[int]) -> tuple[int | None, list[int]]:
    """Where in `tokens` the grammar begins, and what is behind that."""
    if self._after is None:
      return 0, tokens
    if self._after not in tokens:
      return None, []
    start = tokens.index(self._after) + 1
    return start, tokens[start:]


def pack(ids: Collection[int], size: int) -> np.ndarray:
  """A set of ids as int32 [ceil(size / 32)], bit i of word w: id 32 w + i."""
  bits = np.zeros(-(-size // 32) * 32, np.uint8)
  bits[list(ids)] = 1
  return np.packbits(bits, bitorder="little").view(np.int32)


@functools.cache
def _executor() -> Any:
  """Threads of the library; one set per process is enough."""
  from llguidance import LLExecutor

  return LLExecutor(num_threads=1)
