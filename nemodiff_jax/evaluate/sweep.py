"""The settings of a sweep: which combinations are decoded, which are not."""

import dataclasses
from collections.abc import Sequence

from nemodiff_jax.decode.config import MODES, DecodeConfig, decode_config
from nemodiff_jax.errors import UserError
from nemodiff_jax.nn.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Skipped:
  """A combination that is not decoded.

  Attributes:
    setting: what it would have been called.
    why: the reason.
  """

  setting: str
  why: str


def sweep(
  model: ModelConfig,
  modes: Sequence[str],
  thresholds: Sequence[float] = (),
  steps: Sequence[int] = (),
  block_lengths: Sequence[int] = (),
) -> tuple[list[DecodeConfig], list[Skipped]]:
  """All settings of a sweep, in order, each once.

  ar is one setting. The speculative modes take every block length; diffusion
  takes every block length with every threshold, and with every count of steps
  (then without a threshold).

  Raises:
    UserError: an unknown mode, or nothing is left.
  """
  for mode in modes:
    if mode not in MODES:
      raise UserError(f"modes should be among {MODES}, got {mode!r}.")
  found: list[DecodeConfig] = []
  skipped: list[Skipped] = []
  for mode in modes:
    for how in _combinations(mode, thresholds, steps, block_lengths):
      try:
        if how.get("steps_per_block", 0) > (
          size := how.get("block_length") or model.block_size
        ):
          raise UserError(f"a block of {size} has at most {size} steps.")
        setting = decode_config(model, mode, **how)
      except UserError as e:
        named = ", ".join(f"{k}={v}" for k, v in how.items())
        skipped.append(Skipped(f"{mode}({named})", str(e)))
        continue
      if setting not in found:
        found.append(setting)
  if not found:
    reasons = "; ".join(f"{s.setting}: {s.why}" for s in skipped)
    raise UserError(f"no combination can be decoded ({reasons}).")
  return found, skipped


def _combinations(mode: str, thresholds, steps, block_lengths) -> list[dict]:
  if mode == "ar":
    return [{}]
  lengths = [{"block_length": c} for c in block_lengths] or [{}]
  if mode != "diffusion":
    return lengths
  ways = [{"threshold": t} for t in thresholds]
  ways += [{"steps_per_block": s} for s in steps]
  return [a | b for a in lengths for b in ways or [{}]]


def label(setting: DecodeConfig) -> str:
  """A short name: 'diffusion C=16 t=0.9'."""
  if setting.mode == "ar":
    return "ar"
  name = f"{setting.mode} C={setting.block_length}"
  if setting.mode == "diffusion":
    if setting.threshold is not None:
      name += f" t={setting.threshold:g}"
    if setting.steps_per_block is not None:
      name += f" s={setting.steps_per_block}"
  return name
