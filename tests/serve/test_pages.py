"""The pool of pages, against a model that keeps whole texts in a dict."""

import random

import pytest

from nemodiff_jax.errors import UserError
from nemodiff_jax.serve import pages as module
from nemodiff_jax.serve.pages import PagePool

PAGE = 4


class Model:
  """What should be known: whole texts, and when each was used last."""

  def __init__(self, pages: int):
    self.pages = pages
    self.texts: dict[tuple, int] = {}  # (salt, ids up to a page's end).
    self.last: dict[tuple, tuple] = {}
    self.holders: dict[int, int] = {}
    self.time = 0

  def match(self, ids, salt, limit):
    most = len(ids) - 1 if limit is None else min(limit, len(ids) - 1)
    found = []
    for end in range(PAGE, most + 1, PAGE):
      if (salt, tuple(ids[:end])) not in self.texts:
        break
      found.append(self.texts[salt, tuple(ids[:end])])
    return found

  def unused(self):
    return [t for t, page in self.texts.items() if not self.holders.get(page)]

  def free(self):
    held = {page for page, count in self.holders.items() if count}
    return self.pages - len(held | set(self.texts.values()))

  def allocate(self, count, shared):
    """The texts that have to go; None: there are not so many pages."""
    for page in shared:
      self.holders[page] = self.holders.get(page, 0) + 1
    gone = []
    while self.free() < count:
      longer = {(salt, ids[:-PAGE]) for salt, ids in self.texts}
      leaves = [t for t in self.unused() if t not in longer]
      if not leaves:
        break
      text = min(leaves, key=self.last.__getitem__)
      gone.append((text, self.texts.pop(text)))
    if self.free() < count:
      self.texts.update(gone)
      for page in shared:
        self.holders[page] -= 1
      return False
    return True

  def release(self, pages, ids, salt):
    self.time += 1
    for page in pages:
      self.holders[page] -= 1
    for depth, page in enumerate(pages):
      text = salt, tuple(ids[: (depth + 1) * PAGE])
      if len(text[1]) == (depth + 1) * PAGE:
        self.texts.setdefault(text, page)
        self.last[text] = self.time, -depth
      for known, kept in self.texts.items():
        if kept == page:
          self.last[known] = self.time, -depth


def text(rng, longest=26):
  start = [rng.choice((0, 1))] * rng.choice((0, 4, 8, 12))
  return start + [rng.choice((0, 1)) for _ in range(rng.randrange(1, longest))]


@pytest.mark.parametrize("seed", range(8))
def test_the_pool_is_its_model_after_every_event(seed):
  """1500 rows that come, share, grow and go; what is found, what goes."""
  rng = random.Random(seed)
  count = rng.randrange(3, 24)
  pool, model, rows = PagePool(count, PAGE), Model(count), []
  for _ in range(1500):
    event = rng.random()
    if event < 0.5 or not rows:
      ids, salt = text(rng), rng.choice(("", "a"))
      limit = rng.choice((None, None, 0, 5, 8))
      shared = pool.match(ids, salt, limit)
      assert shared == model.match(ids, salt, limit)
      assert len(shared) <= (len(ids) - 1) // PAGE
      assert len(shared) * PAGE <= (len(ids) if limit is None else limit)
      more = -(-len(ids) // PAGE) - len(shared) + rng.randrange(3)
      new = pool.allocate(more, shared)
      assert (new is not None) == model.allocate(more, shared)
      if new is None:
        continue
      taken = [page for row in rows for page in row[0]]
      assert len({*new}) == more and not {*new} & {*taken, *shared}
      assert all(0 <= page < count for page in new)
      model.holders |= dict.fromkeys(new, 1)
      rows.append((shared + new, ids, salt))
    else:
      row = rows.pop(rng.randrange(len(rows)))
      ids = row[1][: rng.choice((0, len(row[1]) // 2, len(row[1])))]
      if event < 0.7:  # Goes on, and later ends.
        pool.share(row[0], ids, row[2])
        for end in range(PAGE, len(ids) + 1, PAGE):
          known, page = (row[2], tuple(ids[:end])), row[0][end // PAGE - 1]
          if model.texts.setdefault(known, page) != page:
            break
        rows.append(row)
      else:
        pool.release(row[0], ids, row[2])
        model.release(row[0], ids, row[2])
    held = {page for row in rows for page in row[0]}
    assert (pool.free, pool.cached) == (model.free(), len(model.unused()))
    assert pool.used == len(held) == count - pool.free - pool.cached
  assert pool.reused and pool.evictions
  for pages, ids, salt in rows:
    pool.release(pages, ids, salt)
  unused = pool.cached
  assert pool.flush() == unused
  assert (pool.free, pool.cached, pool.used) == (count, 0, 0)


def filled(ids, salt="", pages=8) -> PagePool:
  pool = PagePool(pages, PAGE)
  pool.release(pool.allocate(-(-len(ids) // PAGE)), ids, salt)
  return pool


def test_the_last_token_is_never_found():
  pool = filled(range(8))
  assert len(pool.match(range(8))) == 1
  assert len(pool.match(range(9))) == 2
  assert pool.match(range(1)) == pool.match([]) == []


def test_nothing_at_or_after_the_limit_is_found():
  pool = filled(range(12))
  found = [len(pool.match(range(13), limit=n)) for n in (0, 3, 4, 7, 8, 12, 99)]
  assert found == [0, 0, 1, 1, 2, 3, 3]


def test_pages_that_are_not_whole_are_not_kept():
  pool = filled(range(11))
  assert (pool.cached, pool.free) == (2, 6)
  assert len(pool.match(range(12))) == 2


def test_tenants_do_not_find_each_others_pages():
  pool = filled(range(8), "one")
  assert pool.match(range(9), "two") == pool.match(range(9)) == []
  assert len(pool.match(range(9), "one")) == 2


def test_ids_of_one_hash_are_told_apart(monkeypatch):
  """However they are hashed: here all alike."""
  monkeypatch.setattr(module, "hash", lambda _: 0, raising=False)
  pool = filled(range(8))
  assert pool.match([7, 6, 5, 4, 3, 2, 1, 0, 9]) == []
  assert len(pool.match([0, 1, 2, 3, 7, 6, 5, 4, 9])) == 1
  pool.release(pool.allocate(2), [4, 5, 6, 7, 4, 5, 6, 7])
  assert pool.match([4, 5, 6, 7, 0]) != pool.match([0, 1, 2, 3, 0])
  assert len(pool.match([4, 5, 6, 7, 0, 1, 2, 3, 9])) == 1


def test_a_page_is_known_with_all_that_came_before():
  """The same ids behind other ids are another text."""
  pool = filled([0, 0, 0, 0, 1, 1, 1, 1])
  pool.release(pool.allocate(2), [2, 2, 2, 2, 3, 3, 3, 3])
  assert len(pool.match([2, 2, 2, 2, 1, 1, 1, 1, 0])) == 1
  assert pool.match([1, 1, 1, 1, 0]) == []


def test_what_two_rows_wrote_is_kept_once():
  pool = PagePool(8, PAGE)
  rows = [pool.allocate(3), pool.allocate(3)]
  for row in rows:
    pool.share(row, range(10))
  for row in rows:
    pool.release(row, range(10))
  assert (pool.cached, pool.free) == (2, 6)


def test_held_pages_are_not_evicted_and_shared_ones_count_once():
  pool = filled(range(8), pages=4)
  shared = pool.match(range(9))
  row, other = pool.allocate(1, shared), pool.allocate(1, shared)
  assert (pool.used, pool.cached, pool.free) == (4, 0, 0)
  assert pool.allocate(1) is None
  assert pool.reused == 16
  pool.release([*shared, *row], range(9))
  assert pool.allocate(2) is None
  assert set(pool.allocate(1)) == set(row)
  assert pool.match(range(9)) == shared
  pool.release([*shared, *other])
  assert pool.cached == 2


def test_too_few_pages_change_nothing():
  pool = filled(range(8), pages=4)
  shared = pool.match(range(9))
  assert pool.allocate(3, shared) is None
  assert (pool.cached, pool.free, pool.reused) == (2, 2, 0)
  assert pool.evictions == 0
  assert pool.allocate(2, shared) is not None


def test_leaves_go_before_what_they_hang_on():
  pool = filled(range(12), pages=3)
  page = pool.match(range(13))
  assert pool.allocate(1) == [page[2]]
  assert pool.match(range(13)) == page[:2]


def test_the_longest_unused_goes_first():
  pool = filled([1] * 4, pages=2)
  pool.release(pool.allocate(1), [2] * 4)
  shared = pool.match([1] * 5)
  pool.release([*shared, *pool.allocate(0, shared)])
  assert pool.allocate(1) is not None
  assert pool.match([1] * 5) and not pool.match([2] * 5)
  assert pool.evictions == 1


def test_flush_spares_what_is_held():
  pool = filled(range(12))
  shared = pool.match(range(8))
  pool.allocate(0, shared)
  assert pool.flush() == 2
  assert pool.match(range(13)) == shared
  assert (pool.used, pool.cached, pool.evictions) == (1, 0, 0)


def test_a_pool_of_no_pages_is_refused():
  with pytest.raises(UserError, match="at least 1 page, got 0; give it"):
    PagePool(0)


def test_a_page_is_not_given_back_twice():
  pool = PagePool(2)
  row = pool.allocate(1)
  pool.release(row)
  with pytest.raises(ValueError, match=r"page 0 is given back, but nobody"):
    pool.release(row)
  assert PagePool(1).page == 128
