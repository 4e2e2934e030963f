"""Causal pretraining or adaptation of a checkpoint, without diffusion."""

from ml_collections import ConfigDict

from train.configs import base


def get_config() -> ConfigDict:
  """`base` without its noisy half, and with a longer plateau."""
  c = base.get_config()
  c.update({"steps": 250_000, "accumulate": 16, "diffusion_weight": 0.0})
  c.optimizer.warmup = 2_500
  c.eval.modes = ("ar",)
  return c
