"""Metrics of some steps: means, shares, speed."""

import time
from typing import Any

import jax
import ml_collections
import numpy as np

from nemodiff_jax.nn.config import ModelConfig
from train import watch
from train.flops import model_operations, peak_operations
from train.step import level_means

_COUNTERS = ("skipped", "bad_run")


class Window:
  """The steps since the last line of metrics."""

  def __init__(self):
    self._steps: list[dict[str, Any]] = []
    self._filled: list[float] = []
    self._since = time.perf_counter()

  def add(self, metrics: dict[str, Any], filled: float) -> None:
    """A step: its metrics, and the share of its rows that is documents."""
    self._steps.append(metrics)
    self._filled.append(filled)

  def leave_out(self, seconds: float) -> None:
    """Time that was not spent on steps."""
    self._since += seconds

  def summary(
    self, model: ModelConfig, config: ml_collections.ConfigDict, drafts: bool
  ) -> dict[str, float]:
    """Means over the steps, speed and memory; waits for the last step.

    Speeds count the tokens of the clean rows.
    """
    many = jax.device_get(self._steps)
    seconds = time.perf_counter() - self._since
    finite = lambda m: np.isfinite([m["loss"], m["grad_norm"]]).all()
    found = means([m for m in many if finite(m)] or many[-1:])
    found |= {k: float(max(m[k] for m in many)) for k in _COUNTERS}
    tokens = config.batch_size * config.length
    found["filled_share"] = float(np.mean(self._filled))
    found["tokens_per_second"] = tokens * len(many) / seconds
    found["memory_gib"] = watch.memory_gib()
    if not drafts:
      learned, attended = found.pop("supervised"), found.pop("attended")
      found["supervised_share"] = learned / tokens
      found["supervised_tokens_per_second"] = learned * len(many) / seconds
      if (peak := peak_operations()) is not None:
        noisy = config.noisy_length if config.diffusion_weight else 0
        positions = config.batch_size * (config.length + noisy)
        work = model_operations(model, positions, attended) * len(many)
        found["mfu"] = work / seconds / (peak * jax.device_count())
    return found


def means(many: list[dict[str, Any]]) -> dict[str, float]:
  """Mean of each metric; per noise level, of all its masks."""
  found = {k: np.mean([m[k] for m in many], 0) for k in many[0]}
  levels = [found.pop(k) for k in ("level_loss", "level_count") if k in found]
  return {k: float(x) for k, x in found.items()} | (
    level_means(*levels) if levels else {}
  )
