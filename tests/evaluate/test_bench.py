"""The speed table: its arithmetic, and what is refused."""

import json
import math

import pytest

from nemodiff_jax.cli import bench as command
from nemodiff_jax.decode.config import DecodeConfig
from nemodiff_jax.evaluate import bench
from nemodiff_jax.evaluate.measure import Floor
from nemodiff_jax.nn.config import preset
from pallas_kernels.chips import CHIPS
from tests import helpers


def call(*flags):
  return helpers.run_command(command.main, "bench", *flags)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
  """The rows of a small run, and what it printed."""
  path = tmp_path_factory.mktemp("bench") / "rows.json"
  code, out, err = call(
    "--shape=tiny", "--modes=ar,linear_spec", "--block_lengths=8",
    "--batches=1,2", "--contexts=20", "--new_tokens=9", "--project=b200",
    f"--json={path}",
  )  # fmt: skip
  assert code == 0, err
  return json.loads(path.read_text()), out


def test_a_row_for_every_mode_and_batch(table):
  content, out = table
  rows = content["rows"]
  assert [(r["setting"], r["batch"]) for r in rows] == [
    ("ar", 1), ("linear_spec C=8", 1), ("ar", 2), ("linear_spec C=8", 2)
  ]  # fmt: skip
  assert all(r["context"] == 20 and r["new_tokens"] == 9 for r in rows)
  assert "NVIDIA B200 by data sheets, not measured there" in out
  lines = [x for x in out.splitlines() if x.startswith("| ar ")]
  assert len(lines) == 2 and "ms/pass" in out


def test_a_pass_of_ar_is_a_token_of_each_row(table):
  for row in table[0]["rows"]:
    if row["setting"] == "ar":
      assert row["tokens_per_forward"] == 1.0
      per_second = row["batch"] * 1e3 / row["ms_per_pass"]
      assert row["tokens_per_second"] == pytest.approx(per_second)


def shape_model():
  return bench.random_model("tiny", "float32", "none")


def test_the_floor_counts_weights_once_and_keys_per_row():
  """By hand, from the published sizes of the architecture."""
  c = preset("tiny")
  matrices = c.num_layers * (
    2 * c.hidden_size * c.num_heads * c.head_dim
    + 2 * c.hidden_size * c.num_kv_heads * c.head_dim
    + 3 * c.hidden_size * c.intermediate_size
  )
  norms = (2 * c.num_layers + 1) * c.hidden_size
  weights = matrices + norms + c.vocab_size * c.hidden_size
  case = bench.Case(
    DecodeConfig("linear_spec", 8), batch=3, context=100, new=20
  )
  moved, operations = bench.cost(shape_model(), case)
  keys = 3 * 110 * 2 * c.num_layers * c.num_kv_heads * c.head_dim
  assert moved == 4 * (weights + keys)
  attention = 4 * 110 * c.num_layers * c.num_heads * c.head_dim
  assert operations == 3 * 8 * (2 * weights + attention)


def test_queries_of_a_pass():
  queries = lambda *how: bench.queries_of(DecodeConfig(*how))
  assert queries("ar", 32) == 1
  assert queries("diffusion", 32) == queries("linear_spec", 32) == 32
  assert queries("quadratic_spec", 16) == 16 * 17


def test_a_projection_scales_as_the_floors_do():
  """Bound by bytes on both: half of them, at the ratio of the bandwidths."""
  model, chip = shape_model(), CHIPS["h200"]
  case = bench.Case(DecodeConfig("ar"), 1, 100, 20)
  here = Floor(bandwidth=1e9, flops=math.inf)
  got = bench.project({"ms_per_pass": 8.0}, model, case, here, chip)
  assert got == pytest.approx(8.0 / 2 * 1e9 / chip.bandwidth)


@pytest.mark.parametrize(
  ("flags", "told"),
  [
    (["--shape=tiny", "--checkpoint=x"], "--shape goes without"),
    (["--shape=tiny", "--peer=transformers"], "--shape goes without"),
    (["--shape=tiny", "--batches=0"], "--batches should be at least 1"),
    (["--shape=tiny", "--contexts="], "--contexts should be at least 1"),
    (["--shape=tiny", "--batches=a"], "--batches should be numbers"),
    (["--shape=tiny", "--modes=fast"], "modes should be among"),
    (["--shape=tiny", "--modes=ar", "--new_tokens=1"], "nothing could be run"),
    (["--shape=9b"], "--help lists the flags"),
  ],
)
def test_what_cannot_be_timed_is_told(flags, told):
  code, _, err = call(*flags)
  assert code == 2 and told in err


def test_what_does_not_fit_is_skipped_and_the_rest_is_run():
  code, out, err = call(
    "--shape=tiny", "--modes=ar", "--contexts=20,600", "--new_tokens=4"
  )
  assert code == 0 and "skipped ar, batch 1, context 600" in err
  assert out.count("| ar ") == 1


def test_a_pass_faster_than_its_floor_is_noticed():
  row = {"ms_per_pass": 0.4, "floor_ms": 0.3}
  assert not bench.below_floor([row, row])
  assert bench.below_floor([row, {**row, "floor_ms": 0.7}])


@pytest.mark.slow
def test_transformers_runs_beside_it_with_the_same_weights(tmp_path):
  pytest.importorskip("torch", reason="the extra bench is not installed")
  pytest.importorskip("transformers", reason="the extra bench is not installed")
  path = tmp_path / "rows.json"
  code, out, err = call(
    "--modes=ar", "--peer=transformers", "--new_tokens=8", f"--json={path}"
  )
  assert code == 0, err
  content = json.loads(path.read_text())
  assert content["peer"]["torch"]
  assert content["rows"][0]["peer_tokens_per_second"] > 0
  assert "transformers tok/s" in out
