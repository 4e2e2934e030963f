"""Two minutes from nothing to a tri-mode model that answers, on a CPU.

    python -m train.demo [--runs=DIR] [--model=DIR] [--speed=1.0]

Three runs of train/main.py's loop, each from the export of the one before: an
autoregressive model, then joint training, then the drafter. The task is small
enough to be learned meanwhile: the legs of one herd. After each run, questions
that training left out are decoded in three modes. The model is kept, and the
command to talk to it is printed.
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

from checkpoints_convert.folders import check_target
from nemodiff_jax import api
from nemodiff_jax.errors import UserError
from train import evaluate, loop
from train.configs import tiny

_RUNS = flags.DEFINE_string(
  "runs", None, "Workdirs of the three runs. Default: a temporary folder."
)
_MODEL = flags.DEFINE_string(
  "model", ".cache/train-demo", "Where the model is kept."
)
_SPEED = flags.DEFINE_float("speed", 1.0, "Steps are divided by this.")

MODES = ("ar", "diffusion", "linear_spec")
STEPS = {"ar": 160, "joint": 240, "drafter": 40}
SIZES = {
  "hidden_size": 128,
  "intermediate_size": 384,
  "num_layers": 3,
  "num_heads": 4,
}
TASK = "arithmetic:herd"


def stage_config(stage: str, speed: float) -> ml_collections.ConfigDict:
  """The configuration of one stage."""
  config = tiny.get_config("drafter" if stage == "drafter" else "joint")
  steps = max(2, int(STEPS[stage] / speed))
  config.update({"block_lengths": (16,), "steps": steps, "log_every": 20})
  config.update({"batch_size": 4, "length": 256, "noisy_length": 256})
  config.model.update(SIZES)
  config.data.source = TASK
  config.validation.source = ""
  config.eval.update({"every": 0, "source": TASK, "questions": 30})
  config.eval.update({"modes": MODES, "max_new_tokens": 48})
  config.checkpoint.every = steps
  config.optimizer.warmup = min(20, steps // 4)
  if stage == "ar":
    config.diffusion_weight = 0.0
  return config


def run(
  folder: Path, target: Path, speed: float = 1.0
) -> list[dict[str, float]]:
  """Trains the three stages in a folder, and prints the table.

  Args:
    folder: of the runs.
    target: folder of the model; one that is there already is replaced.
    speed: what the steps are divided by.

  Returns:
    The metrics after each stage.
  """
  check_target(target, overwrite=True)
  print(
    f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores {platform.machine()},"
    f" jax {jax.__version__}"
  )
  head = " | ".join(f"{mode}: right %, tokens/forward" for mode in MODES)
  table = [f"| after stage | seconds | {head} |", "|---" * 5 + "|"]
  found, before, sample = [], None, ""
  for stage in STEPS:
    start = time.perf_counter()
    out = target if stage == "drafter" else folder / f"{stage}-model"
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
    table.append(f"| {stage} | {took:.0f} | {' | '.join(cells)} |")
    found.append(metrics)
    before = str(out)
  print("\n" + "\n".join(table))
  print(f"\n{sample}\n\nIt knows how many legs a herd has. Talk to it:")
  print(f"  {sys.executable} -m nemodiff_jax.cli.chat --checkpoint={target}")
  return found


def main(_: list[str]) -> None:
  """Runs the demonstration."""
  logging.set_verbosity(logging.WARNING)
  target = Path(_MODEL.value).expanduser()
  try:
    if _RUNS.value is not None:
      run(Path(_RUNS.value), target, _SPEED.value)
      return
    with tempfile.TemporaryDirectory() as folder:
      run(Path(folder), target, _SPEED.value)
  except UserError as e:
    print(f"error: {e}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  app.run(main)
