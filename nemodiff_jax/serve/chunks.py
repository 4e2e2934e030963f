"""How many prompt tokens a visit reads, so that rows that run wait little."""

import statistics
from collections import deque

from nemodiff_jax.decode.prefill import bucket
from nemodiff_jax.serve.request import Visit

# Queries of a pass over a prompt: few, since each is some programs. What is
# longer than the last is read in more than one.
SIZES = 16, 32, 64, 128, 256, 384
# Tokens of a prompt that is read at once: in parts it would take longer, and
# rows that run would wait more often, and for more in all.
_SHORT = 128
_PATIENCE = 1.0  # Cycles that rows may always wait for a longer prompt.
# Cycles that rows may wait for a prompt where twice as many requests wait for
# their first token: that is missed more than the next one.
_FIRST = 20.0
_WINDOW = 9  # Times of a pass.
# Times of a size that say more than those of smaller ones; the last ones, since
# each chunk of a prompt takes longer than the one before.
_KNOWN = 3


def size(queries: int) -> int:
  """Queries of the pass that reads so many tokens and masks."""
  fits = [s for s in SIZES if s >= queries]
  return fits[0] if fits else bucket(queries, SIZES[-1])


def last_sizes(masks: int) -> list[int]:
  """What `size` may give for the last chunk of a prompt."""
  tokens = range(1, _most(masks) + 1)
  return sorted({size(n + masks) for n in tokens})


def short(masks: int) -> int:
  """Tokens of a prompt that is read at once, if they fit one chunk."""
  return min(_SHORT, _most(masks))


def first_part(unread: int, tokens: int, short: int) -> int:
  """Tokens that a prompt's first visit reads, where it may read so many."""
  return unread if unread <= short else min(tokens, unread)


def _most(masks: int) -> int:
  return max([s - masks for s in SIZES if s > masks], default=SIZES[-1])


class ChunkSizes:
  """Learns how long chunks and cycles take, in seconds."""

  def __init__(self, masks: int, cycle: int):
    """Starts knowing nothing.

    Args:
      masks: queries of a last chunk that are no tokens.
      cycle: passes of a cycle.
    """
    self._masks = masks
    self._cycle = cycle
    self._chunk: dict[int, deque[float]] = {}
    self._pass: deque[float] = deque(maxlen=_WINDOW)
    self._queries = 1  # Of a pass.

  def tokens(self, watched: int, waiting: int = 0) -> int:
    """Prompt tokens that the next visit may read.

    Few where somebody watches rows that run, and no more requests wait for a
    first token; else as many as a pass takes.

    Args:
      watched: rows that run, if somebody watches one of them; else 0.
      waiting: requests without a first token.
    """
    most = [s - self._masks for s in SIZES if s > self._masks]
    if not watched or not most:
      return max(most, default=SIZES[-1])
    cycles = max(_PATIENCE, _FIRST * (waiting - watched) / watched)
    fits = [n for n in most if self._wait(size(n)) <= cycles]
    return max(fits, default=most[0])

  def observe(self, visit: Visit, passes: int, seconds: float) -> None:
    """Takes how long a visit took."""
    if not visit.chunks:
      if passes:
        self._pass.append(seconds / passes)
        self._queries = visit.bucket * visit.width
      return
    read = sum(chunk.stop - chunk.start for chunk in visit.chunks)
    spent = max(seconds - passes * self._pass_time(), 0.0)
    queries = size(read)
    times = self._chunk.setdefault(queries, deque(maxlen=_KNOWN))
    times.append(spent)
    for known, older in self._chunk.items():
      if known > queries and older:  # A chunk has its time from the keys before
        older.popleft()  # it: what is not tried is forgotten, and tried again.

  def _pass_time(self) -> float:
    return statistics.median(self._pass) if self._pass else 0.0

  def _wait(self, queries: int) -> float:
    """Cycles that pass while a chunk is read."""
    cycle = self._cycle * self._pass_time()
    own = self._chunk.get(queries, ())
    if len(own) >= _KNOWN:
      spent = [statistics.median(own)]
    else:  # At most as long as by its length.
      spent = [
        statistics.median(times) * queries / known
        for known, times in self._chunk.items()
        if known <= queries and times
      ]
    if spent and cycle:
      return min(spent) / cycle
    return queries / (self._cycle * self._queries)
