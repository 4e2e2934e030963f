"""Breaks of how wide visits are, and of how much of a prompt they read."""

import functools

from benchmarks.mutants import of_library

_break = functools.partial(of_library, "engine")
WIDTHS = "tests/serve/test_widths.py"
CHUNKS = "tests/serve/test_chunks.py"
OBSERVING = "tests/serve/test_observing.py"
MUTATIONS = (
  _break(
    "what was slow once stays so", "serve/chunks.py",
    "if known <= queries", "if known == queries", CHUNKS,
  ),
  _break(
    "a chunk of a size takes what a smaller one took", "serve/chunks.py",
    "len(own) >= _KNOWN", "False", CHUNKS,
  ),
  _break(
    "times of chunks long ago count as those of the last", "serve/chunks.py",
    "deque(maxlen=_KNOWN)", "deque(maxlen=_WINDOW)", CHUNKS,
  ),
  _break(
    "a size that was left is never tried again", "serve/chunks.py",
    "older.popleft()", "pass", CHUNKS,
  ),
  _break(
    "a chunk hides the passes beside it", "serve/chunks.py",
    "seconds - passes * self._pass_time()", "seconds", CHUNKS,
  ),
  _break(
    "those who wait for a first token do not count", "serve/chunks.py",
    "max(_PATIENCE, _FIRST * (waiting - watched) / watched)", "_PATIENCE", CHUNKS,
  ),
  _break(
    "all who wait count, without a slot too", "serve/scheduler.py",
    "return min(waiting, self._rows - self.running)", "return waiting",
    "tests/serve/test_visits.py",
  ),
  _break(
    "a short prompt is read in parts", "serve/engine.py", "short=short(masks), ",
    "",
    "tests/serve/test_engine.py only_a_short",
  ),
  _break(
    "the end of a long prompt counts as a short one", "serve/prompt_reader.py",
    "0 if row is self.row else self._short", "self._short",
    "tests/serve/test_visits.py",
  ),
  _break(
    "a short prompt that follows is read in parts", "serve/chunks.py",
    "unread if unread <= short else min", "min", "tests/serve/test_visits.py",
  ),
  _break(
    "a short prompt waits for the programs of its parts", "serve/preparing.py",
    "    most = first_part(length - start, most, short(self._masks))\n", "",
    "tests/serve/test_preparing.py",
  ),
  _break(
    "masks have no room in a short prompt's program", "serve/preparing.py",
    "short(self._masks)", "short(0)", "tests/serve/test_preparing.py",
  ),
  _break(
    "those who wait do not count in what is left", "serve/preparing.py",
    "for g in everybody", "for g in held", "tests/serve/test_preparing.py",
  ),
  _break(
    "a short prompt need not fit one chunk", "serve/chunks.py",
    "min(_SHORT, _most(masks))", "_SHORT", CHUNKS,
  ),
  _break(
    "masks have no room in a chunk", "serve/chunks.py",
    "s - self._masks for s in SIZES", "s for s in SIZES", CHUNKS,
  ),
  _break(
    "a visit takes from its dispatch", "serve/observing.py",
    "now - max(flight.start, self._read_at)", "now - flight.start", OBSERVING,
  ),
  _break(
    "first runs count", "serve/observing.py", "if flight.first:", "if False:",
    OBSERVING,
  ),
  _break(
    "visits that only read are timed", "serve/observing.py",
    "if before and self._awaited:", "if True:", OBSERVING,
  ),
  _break(
    "passes take as long as their visit", "serve/observing.py",
    "visit.width, now - since, passes", "visit.width, seconds, passes",
    OBSERVING,
  ),
  _break(
    "a first token is a width's yield", "serve/observing.py",
    "tokens - len(visit.begun)", "tokens", OBSERVING,
  ),
  _break(
    "what a width yields does not count", "serve/widths.py",
    "tokens * self._yielded(width)", "tokens", WIDTHS,
  ),
  _break(
    "pauses count", "serve/widths.py", "statistics.median_low(times) * max",
    "statistics.mean(times) * max", WIDTHS,
  ),
  _break(
    "a cycle is one pass", "serve/widths.py",
    "return 1 if width == 1 else 2", "return 1", WIDTHS,
  ),
  _break(
    "a row is believed to be always right", "serve/widths.py",
    "_MOST = 0.99", "_MOST = 1.0", WIDTHS + " believed",
  ),
  _break(
    "rows are all alike", "serve/widths.py", "+ more[:, None], 0",
    "+ 0 * more[:, None], 0", WIDTHS + " its_own",
  ),
  _break(
    "trying costs what it likes", "serve/widths.py",
    "      and lost[w] <= self._budget\n", "", WIDTHS + " best_fixed",
  ),
  _break(
    "nothing is tried again", "serve/widths.py", "if not due:", "if True:",
    WIDTHS,
  ),
  _break(
    "times of other batch sizes count", "serve/widths.py",
    "      if size == bucket\n", "", WIDTHS + " batch_size",
  ),
  _break(
    "acceptance does not depend on the width", "serve/widths.py",
    "return (right + shared * _WIDTH_PRIOR) / (tried + _WIDTH_PRIOR)",
    "return shared", WIDTHS,
  ),
  _break(
    "a row that ended is remembered", "serve/widths.py",
    "    self._rows.pop(row, None)\n", "    pass\n", WIDTHS + " its_own",
  ),
  _break(
    "widths are chosen that are not compiled", "serve/widths.py",
    "if ready is None or w in ready]", "if True]", WIDTHS + " compiled",
  ),
  _break(
    "the draft that was wrong was not tried", "serve/widths.py",
    "slot < count, slot < count - 1", "slot < count - 1, slot < count - 1",
    WIDTHS,
  ),
)  # fmt: skip
