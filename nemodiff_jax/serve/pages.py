"""Who holds which page of the cache pool, and what the pages hold.

A page is a run of positions in the cache of every layer. A row writes to pages
that it alone holds. Whole pages that are written stay behind as the prefix
cache: rows that begin with the same ids hold the same pages, and only read.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from nemodiff_jax.errors import UserError
from pallas_kernels.range_attention import PAGE


class PagePool:
  """Pages 0 to pages - 1; `pages` itself is the filler of tables.

  A page is free, held by rows, or cached: unused, but known by its ids. Cached
  pages hang on each other as texts do: a page is known by the page before it
  (the first: by the salt) and its own ids, all of which are compared.

  Attributes:
    pages: how many there are.
    page: positions of each.
    reused: tokens that rows found in the cache, in all.
    evictions: cached pages that were given to other rows, in all.
  """

  def __init__(self, pages: int, page: int = PAGE):
    if pages < 1:
      raise UserError(
        f"the cache pool should have at least 1 page, got {pages}; give it"
        " more pages, or a larger fraction of the memory."
      )
    self.pages = pages
    self.page = page
    self.reused = 0
    self.evictions = 0
    self._free = list(reversed(range(pages)))
    self._holders = [0] * pages
    self._key: list[tuple[int | str, bytes] | None] = [None] * pages
    self._known: dict[tuple[int | str, bytes], int] = {}
    # Cached pages, the longest unused first. Who holds a page holds those
    # before it, and pages of a row come here last page first: so a page is
    # always behind those that hang on it.
    self._unused: dict[int, None] = {}

  @property
  def free(self) -> int:
    """Pages that hold nothing."""
    return len(self._free)

  @property
  def cached(self) -> int:
    """Pages that no row holds, known by their ids."""
    return len(self._unused)

  @property
  def used(self) -> int:
    """Pages that rows hold; one that many hold counts once."""
    return self.pages - self.available

  @property
  def available(self) -> int:
    """Pages that could be allocated now."""
    return self.free + self.cached

  def match(
    self, ids: Sequence[int], salt: str = "", limit: int | None = None
  ) -> list[int]:
    """The pages that hold the leading whole pages of these ids already.

    The last id is never among them: a row reads it into a page of its own.
    Nothing is held yet: `allocate` takes them, before the pool changes.

    Args:
      ids: of a row.
      salt: pages are found only under the salt they were kept with.
      limit: leading ids that may be found, at most; None: all.
    """
    most = len(ids) - 1 if limit is None else min(len(ids) - 1, limit)
    found, before = [], salt
    for content in self._contents(ids[: max(most, 0)]):
      page = self._known.get((before, content))
      if page is None:
        break
      found.append(page)
      before = page
    return found

  def allocate(
    self, count: int, shared: Sequence[int] = (), spare: int = 0
  ) -> list[int] | None:
    """Takes `count` pages that no other row has, and holds `shared` as well.

    Where free pages run out, cached ones go, the longest unused first.

    Args:
      count: new pages.
      shared: what `match` found.
      spare: pages that have to be available still, behind that.

    Returns:
      The new pages; None, and nothing changes, if there are not so many.
    """
    kept = sum(page in self._unused for page in shared)
    if count + spare > self.available - kept:
      return None
    for page in shared:
      self._unused.pop(page, None)
      self._holders[page] += 1
    self.reused += len(shared) * self.page
    while self.free < count:
      self._forget(next(iter(self._unused)))
      self.evictions += 1
    new = [self._free.pop() for _ in range(count)]
    for page in new:
      self._holders[page] = 1
    return new

  def share(
    self, pages: Sequence[int], ids: Sequence[int], salt: str = ""
  ) -> None:
    """Lets rows to come find the leading whole pages that a row has written.

    Up to the first page whose ids another page is known by: those behind it
    would hang on a page that this row does not hold.

    Args:
      pages: of a row, which keeps them.
      ids: what is written to them; ids of a last page that is not whole are
        left out.
      salt: of the row.
    """
    before = salt
    for page, content in zip(pages, self._contents(ids), strict=False):
      if self._keep(page, before, content) != page:
        break
      before = page

  def release(
    self, pages: Sequence[int], ids: Sequence[int] = (), salt: str = ""
  ) -> None:
    """Gives back all pages of a row; whole ones stay, known by their ids.

    Args:
      pages: of a row, in order.
      ids: what causal passes wrote to them. Pages that are not whole, that
        hold nothing, or what other pages are known by, are free.
      salt: of the row.

    Raises:
      ValueError: a page that nobody holds.
    """
    path: list[int] = []
    before: int | str = salt
    for page, content in zip(pages, self._contents(ids), strict=False):
      before = self._keep(page, before, content)
      path.append(before)
    for page in reversed(pages):
      if not self._holders[page]:
        raise ValueError(f"page {page} is given back, but nobody holds it.")
      self._holders[page] -= 1
      if not self._holders[page]:
        if self._key[page] is None:
          self._free.append(page)
        else:
          self._unused[page] = None
    for page in reversed(path):  # Those of others were used just now, too.
      if page in self._unused:
        del self._unused[page]
        self._unused[page] = None

  def flush(self) -> int:
    """Forgets all cached pages; returns how many are free by that."""
    count = self.cached
    for page in list(self._unused):
      self._forget(page)
    return count

  def _keep(self, page: int, before: int | str, content: bytes) -> int:
    """The page known by this content, which is `page` if none was."""
    key = before, content
    known = self._known.setdefault(key, page)
    if known == page:
      self._key[page] = key
    return known

  def _forget(self, page: int) -> None:
    del self._unused[page]
    key = self._key[page]
    if key is not None:
      del self._known[key]
    self._key[page] = None
    self._free.append(page)

  def _contents(self, ids: Sequence[int]) -> Iterator[bytes]:
    """The ids of each whole page."""
    table = np.asarray(ids, np.int32)
    for start in range(0, len(ids) - self.page + 1, self.page):
      yield table[start : start + self.page].tobytes()
