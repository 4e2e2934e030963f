"""Two minutes from nothing to a tri-mode model with a drafter, on a CPU.

    python -m train.demo [--workdir=DIR] [--speed=1.0]

Three runs of train/main.py's loop, each from the export of the one before: an
autoregressive model, then joint training, then the drafter. After each, held-out
questions are decoded in three modes. The model is far too small, and trained far
too briefly, to be right often: the figures to watch are tokens per forward.
"""

import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import jax
import ml_collections
from absl import app, flags, logging

from nemodiff_jax import api
from nemodiff_jax.errors import UserError
from train import evaluate, loop
from train.configs import tiny

_WORKDIR = flags.DEFINE_string("workdir", None, "Default: a temporary folder.")
_SPEED = flags.DEFINE_float("speed", 1.0, "Steps are divided by this.")

MODES = ("ar", "diffusion", "linear_spec")
STEPS = {"ar": 200, "joint": 260, "drafter": 60}
SIZES = {
  "hidden_size": 128,
  "intermediate_size": 384,
  "num_layers": 3,
  "num_heads": 4,
}


def stage_config(stage: str, speed: float) -> ml_collections.ConfigDict:
  """The configuration of one stage."""
  config = tiny.get_config("drafter" if stage == "drafter" else "joint")
  steps = max(2, int(STEPS[stage] / speed))
  config.update({"block_lengths": (16,), "steps": steps, "log_every": 20})
  config.batch_size = 4
  config.model.update(SIZES)
  config.eval.update({"every": 0, "questions": 8, "modes": MODES})
  config.checkpoint.every = steps
  config.optimizer.warmup = min(20, steps // 4)
  if stage == "ar":
    config.diffusion_weight = 0.0
  return config


def run(folder: Path, speed: float = 1.0) -> list[dict[str, float]]:
  """Trains the three stages in a folder, and prints the table."""
  print(
    f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores {platform.machine()},"
    f" jax {jax.__version__}"
  )
  head = " | ".join(f"{mode}: right %, tokens/forward" for mode in MODES)
  rows, before = [f"| after stage | seconds | {head} |", "|---" * 5 + "|"], None
  found = []
  for stage in STEPS:
    start, out = time.perf_counter(), folder / f"{stage}-model"
    config = stage_config(stage, speed)
    loop.train(config, folder / stage, before, out)
    took = time.perf_counter() - start
    questions = evaluate.load_questions(config.eval)
    metrics, sample = evaluate.evaluate(
      api.load(str(out)), config.eval, questions
    )
    cells = [
      f"{100 * metrics[f'eval/{m}_accuracy']:.0f},"
      f" {metrics[f'eval/{m}_tokens_per_forward']:.2f}"
      for m in MODES
    ]
    rows.append(f"| {stage} | {took:.0f} | {' | '.join(cells)} |")
    print(f"{stage}: {sample}")
    found.append(metrics)
    before = str(out)
  print("\n" + "\n".join(rows))
  return found


def main(_: list[str]) -> None:
  """Runs the demonstration."""
  logging.set_verbosity(logging.WARNING)
  try:
    if _WORKDIR.value is not None:
      run(Path(_WORKDIR.value), _SPEED.value)
      return
    with tempfile.TemporaryDirectory() as folder:
      run(Path(folder), _SPEED.value)
  except UserError as e:
    print(f"error: {e}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  app.run(main)
