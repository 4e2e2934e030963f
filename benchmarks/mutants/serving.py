"""Breaks of the engine on the device, and of changed logits.

Three that were tried change no token, so nothing could catch them here: free
entries of a table that name a page (no row reads or writes behind its own), a
visit that ends inside a cycle, and a parked draft that is verified at another
width (a verification is right for any draft). The scheduler's tests, which count
passes and writes, catch what leads to them.
"""

import functools

from benchmarks.mutants import of_library

_break = functools.partial(of_library, "engine")
ENGINE = "tests/serve/test_engine.py"
LANES = "tests/serve/test_lanes.py"
DEVICE = (
  _break(
    "rows that do not run go on", "serve/device.py",
    "keep = active.reshape", "keep = jnp.ones_like(active).reshape",
    LANES + " grammar_gives",
  ),
  _break(
    "changes stay behind when rows move", "serve/runner.py",
    "      self._adjust = slot_rows.move(self._adjust, pairs[0], pairs[1])\n",
    "      pass\n", ENGINE + " go_where",
  ),
  _break(
    "changes are forgotten with the pages", "serve/runner.py",
    "self._put_adjust(adjust or self._neutral, slot)",
    "self._put_adjust(self._neutral, slot)", ENGINE + " go_where",
  ),
  _break(
    "a new row has the changes of the last one", "serve/runner.py",
    "      self._put_adjust(self._neutral, slot)\n", "      pass\n",
    ENGINE + " go_where",
  ),
  _break(
    "a row needs no room for its last block", "serve/prompt_reader.py",
    "r.limit(self._block)", "r.limit(0)", "tests/serve/test_visits.py last_block",
  ),
  _break(
    "what a request waits for has log-probabilities for changes",
    "serve/preparing.py", "self._masks), kind[1]", "self._masks), kind[0]",
    "tests/serve/test_preparing.py",
  ),
  _break(
    "rows with all their pages are spared some", "serve/prompt_reader.py",
    "spare = sum(len(r.pages) < most(r) for", "spare = sum(True for",
    "tests/test_api.py as_they_are_done",
  ),
  _break(
    "a lane that can do nothing is always next", "serve/lanes.py",
    "      if lane.engine.flying:\n", "      if True:\n",
    LANES + " waits_for",
  ),
)  # fmt: skip
CHANGES = (
  _break(
    "drafts before a slot do not count", "decode/adjust.py",
    "if before is not None and before.shape[1] > 1:", "if False:",
    LANES + " plain_ar",
  ),
  _break(
    "the first token of a block counts twice", "decode/adjust.py",
    ".at[:, 0].set(False)", "", LANES + " plain_ar",
  ),
  _break(
    "repetition is rewarded below 0", "decode/adjust.py",
    "logits / factor, logits * factor", "logits / factor, logits / factor",
    LANES + " plain_ar",
  ),
  _break(
    "a row may end a token late", "decode/adjust.py",
    "positions[..., None] < column(adjust.free_at)",
    "positions[..., None] <= column(adjust.free_at)", LANES + " plain_ar",
  ),
  _break(
    "the prompt is no repetition", "serve/adjusting.py",
    "held[list(prompt)] = True", "pass", LANES + " plain_ar",
  ),
  _break(
    "what was said is not counted", "decode/adjust.py",
    "adjust.counts.at[row, tokens].add(new)", "adjust.counts",
    LANES + " plain_ar",
  ),
  _break(
    "a row runs on without the host", "serve/steps.py",
    "waits = guides.once & (i > 0)", "waits = guides.once & (i > 99)",
    LANES + " grammar_gives",
  ),
  _break(
    "the first token is free of the grammar", "serve/guiding.py",
    "mask[0, 0] = guide.masks([])[0]", "pass", LANES + " grammar",
  ),
  _break(
    "a prediction is lost at the first mistake", "serve/guide.py",
    "self._at = min(later or places)", "self._at = None",
    LANES + " prediction",
  ),
  _break(
    "scores stand a token early", "serve/scores.py",
    "at = chunk.start + i + 1", "at = chunk.start + i", LANES + " scores",
  ),
  _break(
    "scores are found in the prefix cache", "serve/engine.py",
    "reuse=None if scores is None else max(scores[0] - 1, 0),", "",
    LANES + " scores",
  ),
)  # fmt: skip
MUTATIONS = (*DEVICE, *CHANGES)
