"""Does the published ordering of ablations hold at tiny scale?

    .venv/bin/python -m benchmarks.ablations --workdir=DIR [--steps=1500]
    .venv/bin/python -m benchmarks.ablations --workdir=DIR --part=corruption

Runs of train/configs/tiny.py with one thing changed in each. The first part, a
smaller model (SIZES, 4 rows a step) from nothing: with and without the AR loss,
weights of the diffusion loss, block lengths, one or two stages. The second, what
moves the accuracy of diffusion: every run goes on from the embedded checkpoint
for --steps (150) with another corruption. Every run of a part has the same
number of steps (two stages share them). The losses are those of training, over
the last third of a run. Runs that are complete in the workdir are not repeated,
so that this can be stopped and goes on. Prints a table for docs/training.md.
"""

import json
import os
import platform
import re
import time
from pathlib import Path

import jax
from absl import app, flags, logging

from nemodiff_jax import api
from nemodiff_jax.io.hub import find_checkpoint
from train import evaluate, loop
from train.configs import tiny

_WORKDIR = flags.DEFINE_string("workdir", None, "Of all runs.", required=True)
_PART = flags.DEFINE_enum(
  "part", "objective", ("objective", "corruption"), "Which runs."
)
_STEPS = flags.DEFINE_integer("steps", None, "Of every run; 1500, or 150.")
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
UNIFORM = {"draft": 0.0, "hard_last": 0.0}
# Name -> changes of the corruption.
CORRUPTIONS = {
  "as tiny.py: draft 45 %, uniform 25 %, hard-last 30 %": {},
  "uniform only, t in [0, 1]": {**UNIFORM, "t_min": 0.0},
  "uniform only, t in [0.1, 1]": UNIFORM,
  "uniform only, t in [0.5, 1]": {**UNIFORM, "t_min": 0.5},
  "draft only (every slot masked)": {"draft": 1.0, "hard_last": 0.0},
  "hard-last only (digits masked)": {"draft": 0.0, "hard_last": 1.0},
}
MODES = ("ar", "diffusion", "linear_spec")
# Of the models that are trained from nothing.
SIZES = {
  "hidden_size": 128,
  "intermediate_size": 384,
  "num_layers": 4,
  "num_heads": 4,
}


def settings(steps: int, changes: dict):
  config = tiny.get_config()
  config.steps = steps
  config.eval.update(
    {"every": 0, "questions": _QUESTIONS.value, "modes": MODES}
  )
  if _PART.value == "corruption":  # The checkpoint is trained: go gently.
    config.optimizer.update({"lr": 1e-3, "warmup": 20})
    config.corruption.update(changes)
  else:
    config.model.update(SIZES)
    config.update({"block_lengths": (16,), "batch_size": 4})
    config.update({k: v for k, v in changes.items() if k != "first"})
    config.model.block_size = max(config.block_lengths)
  return config


def train(folder: Path, changes: dict) -> Path:
  embedded = str(find_checkpoint(None))
  before = embedded if _PART.value == "corruption" else None
  first = int(steps() * changes.get("first", 0))
  if first:
    before = str(folder / "first-model")
    config = settings(first, {**changes, "diffusion_weight": 0.0})
    loop.train(config, folder / "first", None, Path(before))
  config = settings(steps() - first, changes)
  loop.train(config, folder / "run", before, folder / "model")
  return folder / "model"


def steps() -> int:
  return _STEPS.value or (150 if _PART.value == "corruption" else 1500)


def last_losses(folder: Path) -> list[float]:
  """Causal and diffusion loss in the last third of a run, unweighted."""
  lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
  found = [x for x in map(json.loads, lines) if "loss" in x]
  last = found[-max(1, len(found) // 3) :]
  return [sum(x[k] for x in last) / len(last) for k in ("ar", "diffusion")]


def measure(folder: Path, changes: dict) -> dict[str, float]:
  kept = folder / f"found_{_QUESTIONS.value}.json"
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
    f" jax {jax.__version__}, {steps()} steps a run,"
    f" {_QUESTIONS.value} held-out questions a family\n"
  )
  head = " | ".join(f"{m}: right %, tokens/forward" for m in MODES)
  print(f"| run | ar loss | diffusion loss | {head} |")
  print("|---" * (len(MODES) + 3) + "|")
  runs = CORRUPTIONS if _PART.value == "corruption" else RUNS
  for name, changes in runs.items():
    label = re.sub(r"\W+", "_", name)
    folder = Path(_WORKDIR.value) / f"{label}_{steps()}"
    found = measure(folder, changes)
    cells = [f"{loss:.3f}" for loss in last_losses(folder)]
    cells += [
      f"{100 * found[f'eval/{m}_accuracy']:.0f},"
      f" {found[f'eval/{m}_tokens_per_forward']:.2f}"
      for m in MODES
    ]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
  app.run(main)
