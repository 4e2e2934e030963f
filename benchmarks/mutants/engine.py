"""Breaks of the engine's scheduler; see `benchmarks.mutations`."""

import functools

from benchmarks.mutants import of_library, serving, widths

_break = functools.partial(of_library, "engine")
POOL = "tests/serve/test_pages.py"
ALONE = "tests/serve/test_scheduler.py"
VISITS = "tests/serve/test_visits.py"
PAGES = (
  _break(
    "the last full page is reused", "serve/pages.py",
    "min(len(ids) - 1, limit)", "min(len(ids), limit)", POOL,
  ),
  _break(
    "the last full page is reused, without a limit", "serve/pages.py",
    "most = len(ids) - 1 if", "most = len(ids) if", POOL,
  ),
  _break(
    "the limit is not kept", "serve/pages.py",
    "min(len(ids) - 1, limit)", "len(ids) - 1", POOL,
  ),
  _break(
    "ids of one hash are one", "serve/pages.py",
    "yield table[start : start + self.page].tobytes()",
    "yield hash(table[start : start + self.page].tobytes())", POOL + " hash",
  ),
  _break(
    "what came before a page does not count", "serve/pages.py",
    "      before = page\n    return found", "      before = salt\n    return found",
    POOL,
  ),
  _break(
    "tenants share pages", "serve/pages.py", "found, before = [], salt",
    'found, before = [], ""', POOL,
  ),
  _break(
    "a page that is held is evicted", "serve/pages.py",
    "      self._unused.pop(page, None)\n", "", POOL,
  ),
  _break(
    "shared pages count as available", "serve/pages.py",
    "self.available - kept:", "self.available:", POOL,
  ),
  _break(
    "no page is spared", "serve/pages.py",
    "if count + spare >", "if count >", VISITS,
  ),
  _break(
    "parents are evicted first", "serve/pages.py",
    "for page in reversed(pages):", "for page in pages:", POOL,
  ),
  _break(
    "parents of pages that are known are evicted first", "serve/pages.py",
    "for page in reversed(path):", "for page in path:", POOL,
  ),
  _break(
    "what was used just now is evicted", "serve/pages.py",
    "next(iter(self._unused))", "next(reversed(self._unused))", POOL,
  ),
  _break(
    "pages hang on pages of others", "serve/pages.py",
    "      if self._keep(page, before, content) != page:\n        break\n"
    "      before = page\n", "      before = self._keep(page, before, content)\n",
    POOL,
  ),
  _break(
    "a page is free while another row holds it", "serve/pages.py",
    "      if not self._holders[page]:\n        if self._key",
    "      if True:\n        if self._key", POOL,
  ),
  _break(
    "a page is given back twice", "serve/pages.py",
    "      if not self._holders[page]:\n        raise",
    "      if False:\n        raise", POOL,
  ),
  _break(
    "evicted pages are found", "serve/pages.py",
    "      del self._known[key]\n", "      pass\n", POOL,
  ),
)  # fmt: skip
VISIT = (
  _break(
    "the oldest is preempted", "serve/scheduler.py",
    "self._preempt(holders.pop())", "self._preempt(holders.pop(0))", ALONE,
  ),
  _break(
    "passes in flight need no pages", "serve/plan.py",
    "flying = row.flying + (passes", "flying = (passes", ALONE,
  ),
  _break(
    "the last pass has no room", "serve/plan.py",
    "cycle) * block + block)", "cycle) * block)", ALONE,
  ),
  _break(
    "a pass begun needs no pages", "serve/plan.py",
    "-(-passes // cycle)", "(passes // cycle)", VISITS + " reach",
  ),
  _break(
    "a row ends without room for a draft", "serve/request.py",
    "self.max_new + block", "self.max_new", ALONE,
  ),
  _break(
    "a row is read again before it is known", "serve/prompt_reader.py",
    "if row is None or row.flying or", "if row is None or", ALONE,
  ),
  _break(
    "what a visit says of ended rows counts", "serve/scheduler.py",
    "      if row.phase is Phase.ENDED:\n        continue\n", "", ALONE,
  ),
  _break(
    "a visit is read against the slots of today", "serve/scheduler.py",
    "enumerate(visit.rows)", "enumerate(self._slots)", ALONE,
  ),
  _break(
    "the last token's page is kept", "serve/scheduler.py",
    "known = row.length  #", "known = len(row.ids)  #", VISITS + " turn",
  ),
  _break(
    "a prompt half read is kept whole", "serve/scheduler.py",
    "      known = row.read", "      known = row.length", ALONE,
  ),
  _break(
    "the state is not parked", "serve/scheduler.py",
    "return [(slot, row)] if slot >= 0 else []", "return []", ALONE,
  ),
  _break(
    "a preempted row begins again", "serve/prompt_reader.py",
    "row.slot if last else None\n      pages, resumes = tuple(row.pages), "
    "last and parked",
    "row.slot if last else None\n      pages, resumes = tuple(row.pages), False",
    ALONE,
  ),
  _break(
    "moves are not told", "serve/scheduler.py",
    "      moves=tuple(moves),", "      moves=(),", ALONE,
  ),
  _break(
    "a row that is steered is dispatched ahead", "serve/request.py",
    "return self.ahead or not self.flying", "return True", ALONE,
  ),
  _break(
    "what is before log-probabilities is no limit", "serve/prompt_reader.py",
    "limit = None if row.begun else row.reuse", "limit = None", ALONE,
  ),
  _break(
    "the limit of reuse holds for preempted rows", "serve/prompt_reader.py",
    "limit = None if row.begun else row.reuse", "limit = row.reuse",
    VISITS + " preempted_row",
  ),
  _break(
    "prompts are shared when their rows end", "serve/prompt_reader.py",
    "    self._pool.share(row.pages, row.ids[: row.read], row.salt)\n", "",
    VISITS + " at_once",
  ),
  _break(
    "passes stay many where pages are short", "serve/scheduler.py",
    "      passes = self._pace.cycle\n    parks", "      pass\n    parks",
    VISITS + " fewer",
  ),
  _break(
    "passes get fewer before cached pages go", "serve/scheduler.py",
    "for r in holders) > self.pool.available",
    "for r in holders) > self.pool.free", VISITS + " cached",
  ),
  _break(
    "a prompt waits for long visits", "serve/scheduler.py",
    "      passes = self._pace.cycle\n    if not", "      pass\n    if not",
    VISITS + " long_prompt",
  ),
  _break(
    "who comes new is not watched", "serve/scheduler.py",
    "    passes = min(passes, self._pace.passes(active))\n", "",
    VISITS + " waits_for_each",
  ),
  _break(
    "reused tokens are counted at each return", "serve/prompt_reader.py",
    "    if not row.preemptions:\n      row.reused", "    if True:\n      row.reused",
    VISITS + " preempted_row",
  ),
  _break(
    "one row more than slots", "serve/prompt_reader.py",
    "len(self._slots) >= self._rows", "len(self._slots) > self._rows", ALONE,
  ),
  _break(
    "all rows run", "serve/scheduler.py",
    "active=tuple(row.runs for row in rows)",
    "active=tuple(True for row in rows)", ALONE,
  ),
  _break(
    "free entries of a table are -1", "serve/request.py",
    "np.full((self.bucket, width), filler,", "np.full((self.bucket, width), -1,",
    ALONE,
  ),
  _break(
    "priority does not count", "serve/request.py",
    "return self.priority, self.arrival", "return 0, self.arrival", VISITS,
  ),
  _break(
    "a preempted row queues up again", "serve/queue.py",
    "bisect.insort(self._waiting, request, key=lambda r: r.order)",
    "self._waiting.append(request)", ALONE,
  ),
  _break(
    "one request more than may wait", "serve/queue.py",
    "if len(self) >= self.limit", "if len(self) > self.limit", VISITS,
  ),
  _break(
    "batches are one bucket too large", "serve/plan.py",
    "if b >= count", "if b > count", VISITS,
  ),
  _break(
    "visits end inside a cycle", "serve/pace.py",
    "-(-passes // cycle) * cycle", "passes", VISITS,
  ),
  _break(
    "the width changes inside a cycle", "serve/pace.py",
    "(row.flying or row.mid)", "row.mid", ALONE + " width",
  ),
  _break(
    "the width changes where a row is known to be inside a cycle",
    "serve/pace.py", "(row.flying or row.mid)", "row.flying", ALONE + " width",
  ),
  _break(
    "only rows that run are asked for their width", "serve/pace.py",
    "for row in held):", "for row in active):", ALONE + " width",
  ),
  _break(
    "a draft of another width is verified", "serve/prompt_reader.py",
    "redraft = last and row.mid and self._widths is not None",
    "redraft = False", ALONE + " width",
  ),
  _break(
    "wide visits are long", "serve/pace.py",
    "min(self._passes, cycles * self.cycle)", "self._passes", VISITS + " short",
  ),
  _break(
    "visits run beyond their pages", "serve/scheduler.py",
    "passes = min(passes, most) if active else 0", "passes = most if active else 0",
    ALONE,
  ),
  _break(
    "a reading row counts as watched", "serve/scheduler.py",
    "any(row.watched for row in self._slots)",
    "any(row.watched for row in self.held)", VISITS + " watched",
  ),
)  # fmt: skip
MUTATIONS = (*PAGES, *VISIT, *widths.MUTATIONS, *serving.MUTATIONS)
