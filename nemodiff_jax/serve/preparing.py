"""Programs that another thread compiles, so that the rows that run go on.

Requests wait for theirs before they wait for their turn. Which programs a
request will need is told as if it were read alone; where a visit needs another
one after all, it is compiled when it is first needed.
"""

from collections.abc import Collection, Iterator, Sequence

from nemodiff_jax.serve import ready
from nemodiff_jax.serve.chunks import first_part, short, size
from nemodiff_jax.serve.generation import Generation
from nemodiff_jax.serve.pages import PagePool
from nemodiff_jax.serve.plan import bucket, buckets
from nemodiff_jax.serve.programs import Key, Programs
from nemodiff_jax.serve.request import Request
from nemodiff_jax.serve.statistics import Statistics

# Whether it keeps log-probabilities; is adjusted; is watched pass by pass.
Kind = tuple[bool, bool, bool]


class Preparing:
  """Requests that wait for programs, in order; and what a visit may run."""

  def __init__(
    self, programs: Programs, rows: int, widths: Sequence[int], masks: int
  ):
    """None yet.

    Args:
      programs: of the engine.
      rows: of the engine.
      widths: that its passes may have, the widest last.
      masks: queries of a last chunk that are no tokens.
    """
    self._programs = programs
    self._rows = rows
    self._widths = widths
    self._masks = masks
    self._waiting: dict[Request, list[Key]] = {}

  def __len__(self) -> int:
    return len(self._waiting)

  def add(
    self,
    made: Generation,
    others: Collection[Generation],
    pool: PagePool,
    most: int,
  ) -> bool:
    """Takes a request if one of its programs is not compiled.

    Args:
      made: the request.
      others: that may run with it, and itself.
      pool: pages that may hold its prompt.
      most: tokens of a chunk.
    """
    request = made.request
    held = pool.match(request.ids, request.salt, request.reuse)
    own = kind_of([made])
    scored = None if made.scores is None else made.scores.start
    start = len(held) * pool.page
    missing = self._missing(
      [
        *self._prompt(start, request.length, most, own, scored),
        *self._passes(min(self._rows, len(others)), [own, kind_of(others)]),
      ]
    )
    if missing:
      self._waiting[request] = missing
    return bool(missing)

  def remove(self, request: Request) -> bool:
    """Lets go a request; False: it is not here."""
    return self._waiting.pop(request, None) is not None

  def ready(self) -> list[Request]:
    """Lets go those whose programs are there; goes on with the others."""
    done = []
    for request, keys in list(self._waiting.items()):
      missing = self._missing(keys)
      self._waiting[request] = missing
      if not missing:
        del self._waiting[request]
        done.append(request)
      elif not self._programs.busy:
        self._programs.later(missing[0])
    return done

  def choose(
    self,
    count: int,
    held: Collection[Generation],
    everybody: Collection[Generation],
    done: Statistics,
  ) -> tuple[int, Collection[int]]:
    """The batch size of so many rows, and the widths compiled for it.

    What would be better is compiled beside, if the time that is left pays.

    Args:
      count: rows of the visit.
      held: that are read or run.
      everybody: they, and those that wait.
      done: so far.
    """
    programs, kind = self._programs, kind_of(held)
    found = ready.choose(
      programs, self._rows, self._widths, count, len(everybody), kind
    )
    if found.missing is not None and not programs.busy:
      left = sum(
        g.settings.max_new_tokens - len(g.output.token_ids) for g in everybody
      )
      if ready.pays(programs, done, left):
        programs.later(found.missing)
    return found.rows, found.widths

  def _missing(self, keys: Sequence[Key]) -> list[Key]:
    # What failed is tried again when it is needed, and tells why.
    programs = self._programs
    if programs.sealed:
      return []
    return [k for k in keys if k not in programs and k not in programs.failed]

  def _prompt(
    self, start: int, length: int, most: int, kind: Kind, scored: int | None
  ) -> Iterator[Key]:
    """Programs that read a prompt and begin its row, chunk by chunk."""
    most = first_part(length - start, most, short(self._masks))
    while start < length:
      stop = min(start + most, length)
      last, first = stop == length, start
      if scored is not None and stop >= max(scored, 1):
        yield "score", size(stop - start)
        first = stop - 1
      elif not last:
        yield "read", size(stop - start)
      if last:
        yield "begin", size(stop - first + self._masks), kind[1]
      start = stop

  def _passes(self, count: int, kinds: Sequence[Kind]) -> Iterator[Key]:
    """Programs of the passes, of the kinds that have none of any width."""
    for kind in dict.fromkeys(kinds):
      found = (
        ("passes", rows, width, *kind) in self._programs
        for rows in buckets(self._rows)
        if rows >= count
        for width in self._widths
      )
      if not any(found):
        rows = bucket(count, self._rows)
        yield "passes", rows, self._widths[-1], *kind


def kind_of(rows: Collection[Generation]) -> Kind:
  """What a visit of these rows has to have."""
  return (
    any(g.settings.logprobs is not None for g in rows),
    any(g.adjust is not None for g in rows),
    any(g.traced for g in rows),
  )
