"""Does the published ordering of ablations hold at tiny scale?

    .venv/bin/python benchmarks/ablations.py --workdir=DIR [--steps=2000]

Runs of train/configs/tiny.py with one thing changed in each: with and without
the AR loss, weights of the diffusion loss, block lengths, one or two stages.
Every run has the same number of steps (two stages share them). Runs that are
complete in the workdir are not repeated, so that this can be stopped and goes
on. Prints a table for docs/training.md.
"""

import json
import os
import platform
import time
from pathlib import Path

import jax
from absl import app, flags, logging

from nemodiff_jax import api
from train import evaluate, loop
from train.configs import tiny

_WORKDIR = flags.DEFINE_string("workdir", None, "Of all runs.", required=True)
_STEPS = flags.DEFINE_integer("steps", 2000, "Of every run.")
_QUESTIONS = flags.DEFINE_integer("questions", 50, "Per family.")

# Name -> changes; 'first' is the share of the steps in a stage with AR only.
RUNS = {
  "as tiny.py, blocks of 16": {},
  "without AR loss": {"ar_weight": 0.0},
  "w_d = 0.1": {"diffusion_weight": 0.1},
  "w_d = 0.3": {"diffusion_weight": 0.3},
  "block 8": {"block_lengths": (8,)},
  "block 32": {"block_lengths": (32,)},
  "two stages": {"first": 0.5},
}
MODES = ("ar", "diffusion", "linear_spec")


def settings(steps: int, changes: dict):
  config = tiny.get_config()
  config.update({"block_lengths": (16,), "steps": steps})
  config.eval.update(
    {"every": 0, "questions": _QUESTIONS.value, "modes": MODES}
  )
  config.update({k: v for k, v in changes.items() if k != "first"})
  config.model.block_size = max(config.block_lengths)
  return config


def train(folder: Path, changes: dict) -> Path:
  first = int(_STEPS.value * changes.get("first", 0))
  before = None
  if first:
    before = str(folder / "first-model")
    config = settings(first, {**changes, "diffusion_weight": 0.0})
    loop.train(config, folder / "first", None, Path(before))
  config = settings(_STEPS.value - first, changes)
  loop.train(config, folder / "run", before, folder / "model")
  return folder / "model"


def measure(name: str, changes: dict) -> dict[str, float]:
  folder = Path(_WORKDIR.value) / name.replace(" ", "_")
  kept = folder / "found.json"
  if kept.exists():
    return json.loads(kept.read_text())
  model = api.load(str(train(folder, changes)))
  c = settings(1, changes).eval
  found, _ = evaluate.evaluate(model, c, evaluate.load_questions(c))
  kept.write_text(json.dumps(found))
  return found


def main(_) -> None:
  logging.set_verbosity(logging.WARNING)
  print(
    f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores {platform.machine()},"
    f" jax {jax.__version__}, {_STEPS.value} steps a run,"
    f" {_QUESTIONS.value} held-out questions a family\n"
  )
  head = " | ".join(f"{m}: right %, tokens/forward" for m in MODES)
  print(f"| run | {head} |\n" + "|---" * (len(MODES) + 1) + "|")
  for name, changes in RUNS.items():
    found = measure(name, changes)
    cells = [
      f"{100 * found[f'eval/{m}_accuracy']:.0f},"
      f" {found[f'eval/{m}_tokens_per_forward']:.2f}"
      for m in MODES
    ]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
  app.run(main)
