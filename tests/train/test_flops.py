"""Operations, shares and speeds by hand."""

import types

import jax
import numpy as np
import pytest

from nemodiff_jax.nn.config import ModelConfig, RopeConfig
from tests.train import dense
from tests.train.conftest import BLOCK
from tests.train.runs import toy
from tests.train.test_objective import corrupted, plan_of
from train import flops, report
from train.losses import attended


def test_operations_of_a_step_by_hand():
  """One layer of width 4: 2 query heads and 1 key head of 4, ffn 5, V 7."""
  config = ModelConfig(
    vocab_size=7, hidden_size=4, intermediate_size=5, num_layers=1,
    num_heads=2, num_kv_heads=1, head_dim=4, max_positions=8,
    rope=RopeConfig(theta=1e4),
  )  # fmt: skip
  weights = 4 * 8 + 4 * 4 + 4 * 4 + 8 * 4 + 3 * 4 * 5 + 4 * 7
  forward = 2 * weights * 10 + 2 * (2 * 2 * 4) * 55
  assert flops.model_operations(config, 10, 55) == 3 * forward


def test_what_is_attended_is_counted_by_the_mask(tiny, rows):
  noisy = corrupted(plan_of(tiny), rows)
  used = np.asarray(noisy.learned).reshape(3, -1, BLOCK).any(-1)
  expected = 0
  for row in range(3):
    mask = dense.doubled_mask(rows, noisy, row, BLOCK)
    own = np.concatenate([used[row].repeat(BLOCK), np.ones(32, bool)])
    expected += mask[own].sum()
  assert float(attended(rows, noisy, BLOCK)) == expected
  clean = sum(
    dense.doubled_mask(rows, noisy, row, BLOCK)[32:].sum() for row in range(3)
  )
  assert float(attended(rows, None, BLOCK)) == clean


@pytest.mark.parametrize("weight, noisy", [(1.0, 48), (0.0, 0)])
def test_a_window_of_steps_by_hand(tiny, monkeypatch, weight, noisy):
  """Two steps in 4 seconds on 2 devices, 4 rows of 64 + 48 each."""
  clock = iter((10.0, 14.0))
  monkeypatch.setattr(
    report, "time", types.SimpleNamespace(perf_counter=lambda: next(clock))
  )
  monkeypatch.setattr(report, "peak_operations", lambda: 1e6)
  config = toy(noisy_length=48, diffusion_weight=weight)
  window = report.Window()
  for loss in (3.0, 5.0):
    window.add(
      {
        "loss": loss, "grad_norm": 1.0, "skipped": 0, "bad_run": 0,
        "supervised": 100.0, "attended": 9000.0,
        "level_loss": np.array([2.0, 0.0]), "level_count": np.array([1, 0]),
      },
      0.75,
    )  # fmt: skip
  found = window.summary(tiny.config, config, False)
  assert found["loss"] == 4.0 and found["diffusion/t_0.00_0.50"] == 2.0
  assert "diffusion/t_0.50_1.00" not in found
  assert found["tokens_per_second"] == 2 * 4 * 64 / 4
  assert found["supervised_tokens_per_second"] == 2 * 100 / 4
  assert found["supervised_share"] == 100 / 256
  assert found["filled_share"] == 0.75
  work = 2 * flops.model_operations(tiny.config, 4 * (64 + noisy), 9000)
  assert found["mfu"] == pytest.approx(work / 4 / (2 * 1e6))
  assert jax.device_count() == 2


def test_bad_steps_are_left_out_of_the_means(tiny):
  window = report.Window()
  for loss in (3.0, np.nan, 5.0):
    window.add(
      {
        "loss": loss, "grad_norm": 1.0, "skipped": 1, "bad_run": 0,
        "supervised": 1.0, "attended": 1.0,
      },
      1.0,
    )  # fmt: skip
  found = window.summary(tiny.config, toy(), False)
  assert found["loss"] == 4.0 and found["skipped"] == 1
