"""Intervals, rows of results, and two runs side by side."""

import json
import math

import numpy as np
import pytest

from nemodiff_jax.evaluate import compare, record, results, statistics, traced


def test_wilsons_interval_is_the_published_one():
  """8 of 10 and 0 of 10: values of R's binom.wilson, four places."""
  assert statistics.share_interval(0.8, 10) == pytest.approx(
    (0.4902, 0.9433), abs=1e-4
  )
  assert statistics.share_interval(0.0, 10) == pytest.approx(
    (0.0, 0.2775), abs=1e-4
  )


def test_the_bootstrap_agrees_with_the_normal_approximation():
  rng = np.random.default_rng(1)
  x = rng.normal(0.3, 1, 400)
  low, high = statistics.paired_interval(x)
  half = 1.96 * x.std() / math.sqrt(len(x))
  assert low == pytest.approx(x.mean() - half, abs=0.02)
  assert high == pytest.approx(x.mean() + half, abs=0.02)
  assert statistics.paired_interval(x) == (low, high)  # Seeded.


def test_a_ratio_is_of_sums_not_a_mean_of_ratios():
  low, high = statistics.ratio_interval([10] * 50 + [1000], [10] * 50 + [100])
  assert low >= 1 and 2 < high < 6


def sample(setting, name, score, tokens, nfe=2, **more):
  return {
    "task": "t", "setting": setting, "id": name, "group": None, "score": score,
    "token_ids": tokens, "num_generated_tokens": len(tokens), "nfe": nfe, **more,
  }  # fmt: skip


def test_a_row_says_how_many_replies_are_ars():
  rows = results.summarise(
    [
      sample("ar", "1", 1.0, [1, 2], 2),
      sample("ar", "2", 0.0, [3], 1),
      sample("linear_spec C=8", "1", 1.0, [1, 2], 1, accepted=[3]),
      sample("linear_spec C=8", "2", 1.0, [4], 1, accepted=[1, 2]),
    ]
  )
  assert [r["accuracy"] for r in rows] == [0.5, 1.0]
  assert [r["tokens_per_forward"] for r in rows] == [1.0, 1.5]
  assert rows[1]["same_as_ar"] == [1, 2]
  assert rows[1]["accepted_per_cycle"] == 2.0


def folder(path, settings, lines):
  path.mkdir()
  (path / "run.json").write_text(json.dumps({"settings": settings, "made": {}}))
  text = "".join(json.dumps(x) + "\n" for x in lines)
  (path / "samples.jsonl").write_text(text)
  return path


def test_two_runs_are_compared_by_question(tmp_path):
  a = folder(
    tmp_path / "a",
    {"seed": 0, "model": {"dtype": "float32", "quantize": "none"}},
    [sample("ar", str(i), float(i < 6), [i]) for i in range(10)],
  )
  b = folder(
    tmp_path / "b",
    {"seed": 0, "model": {"dtype": "float32", "quantize": "int8"}},
    [sample("ar", str(i), float(i < 8), [i, 1]) for i in range(1, 10)],
  )
  text = compare.compare(a, b)
  assert "model.quantize: 'none' and 'int8'" in text
  assert "dtype" not in text and "seed" not in text
  assert "9 questions in common, 1 in one only" in text
  # 6 and 7 were won: 2 / 9; their tokens per forward went from 0.5 to 1.
  assert "right: +22.2 points" in text and "B won 2 (6, 7), lost none" in text
  assert "+0.50, 95 % +0.50 to +0.50; 0 of 9 replies the same" in text
  turned = compare.compare(b, a)
  assert "right: -22.2 points" in turned and "lost 2 (6, 7)" in turned


def test_runs_without_anything_in_common_are_told(tmp_path):
  a = folder(tmp_path / "a", {}, [sample("ar", "1", 1.0, [1])])
  b = folder(tmp_path / "b", {}, [sample("ar", "2", 1.0, [1])])
  with pytest.raises(compare.UserError, match="no question and setting in"):
    compare.compare(a, b)


def test_differences_name_the_setting():
  a = {"x": {"y": [1, {"z": 2}]}, "same": 1}
  b = {"x": {"y": [1, {"z": 3}]}, "same": 1, "new": None}
  assert record.differences(a, b) == ["x.y[1].z: 2 and 3"]
  assert record.differences([1], [1, 2], "n") == ["n: [1] and [1, 2]"]


LINEAR = [
  {"phase": "draft", "confidence": [1.0, 0.9, 0.8, 0.3]},
  {"phase": "verify", "accepted": 3, "confidence": [1.0] * 4},
  {"phase": "draft", "confidence": [1.0, 0.9, 0.7, 0.2]},
  {"phase": "verify", "accepted": 4, "confidence": [1.0] * 4},
]


def test_a_draft_is_judged_up_to_the_first_that_is_rejected():
  """Accepted 3 of 4: slots 1 and 2 agreed, slot 3 did not."""
  judged = traced.judged_drafts("linear_spec", LINEAR)
  assert judged == [
    (1, 0.9, True), (2, 0.8, True), (3, 0.3, False),
    (1, 0.9, True), (2, 0.7, True), (3, 0.2, True),
  ]  # fmt: skip
  bins = traced.calibration(judged)
  assert bins[0] == {"confidence": 0.2, "right": 1.0, "count": 1}
  assert bins[-1] == {"confidence": 0.9, "right": 1.0, "count": 2}
  first = [{"phase": "draft", "confidence": [1.0, 0.9, 0.8]},
           {"phase": "verify", "accepted": 1, "confidence": [1.0] * 3}]  # fmt: skip
  assert traced.judged_drafts("linear_spec", first) == [(1, 0.9, False)]


def test_passes_of_a_block_end_with_its_commit():
  phases = ["denoise", "denoise", "commit", "denoise", "commit", "denoise"]
  assert traced.passes_per_block([{"phase": p} for p in phases]) == [3, 2]


def test_acceptance_by_slot_counts_cycles_that_reach_it():
  assert traced.acceptance_by_slot([1, 2, 4, 4], 4) == [1, 0.75, 0.5, 0.5]
