"""Draws docs/quality_speed.png: accuracy against tokens per forward.

    .venv/bin/python -m benchmarks.quality_speed [--checkpoint=DIR] [--out=F.png]

Held-out arithmetic questions, decoded in every mode, over thresholds, steps per
block and block lengths. Also prints the points. Needs matplotlib.
"""

import os
import platform
import time

import jax
import ml_collections
from absl import app, flags

from nemodiff_jax import api
from nemodiff_jax.decode.config import RowSettings, decode_config
from train.evaluate import ends_with, load_questions

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Default: embedded.")
_OUT = flags.DEFINE_string("out", "docs/quality_speed.png", "Image to write.")
_QUESTIONS = flags.DEFINE_integer("questions", 50, "Per family.")

CURVES = {
  "ar": [("ar", {})],
  "linear_spec, block 8, 16, 32": [
    ("linear_spec", {"block_length": c}) for c in (8, 16, 32)
  ],
  "quadratic_spec, block 8, 16": [
    ("quadratic_spec", {"block_length": c}) for c in (8, 16)
  ],
  "diffusion, threshold 0.5 to 0.99": [
    ("diffusion", {"threshold": t}) for t in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
  ],
  "diffusion, 1 to 16 steps a block": [
    ("diffusion", {"steps_per_block": s, "threshold": None})
    for s in (1, 2, 4, 8, 16)
  ],
}


def point(model, questions, mode: str, how: dict) -> tuple[float, float]:
  """(tokens per forward, share that is right)."""
  config = decode_config(model.config, mode, **how)
  row = RowSettings(max_new_tokens=112)
  prompts = [api.prepare(model, q.prompt, row) for q in questions]
  outs = list(
    api.generate_rows(model, config, prompts, [row] * len(prompts), 16)
  )
  right = [
    ends_with(out.text or "", q.answer)
    for out, q in zip(outs, questions, strict=True)
  ]
  tokens = sum(out.completion_tokens for out in outs)
  return tokens / sum(out.nfe for out in outs), sum(right) / len(right)


def main(_) -> None:
  import matplotlib

  matplotlib.use("agg")
  from matplotlib import pyplot

  model = api.load(_CHECKPOINT.value)
  asked = ml_collections.ConfigDict(
    {"source": "arithmetic", "questions": _QUESTIONS.value}
  )
  questions = load_questions(asked)
  where = (
    f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores {platform.machine()},"
    f" jax {jax.__version__}, {len(questions)} held-out questions"
  )
  print(where)
  figure, axes = pyplot.subplots(figsize=(7, 4.5))
  for name, settings in CURVES.items():
    points = []
    for mode, how in settings:
      x, y = point(model, questions, mode, how)
      points.append((x, 100 * y))
      print(f"{mode} {how}: {x:.2f} tokens/forward, {100 * y:.1f} % right")
    axes.plot(*zip(*points, strict=True), marker="o", label=name)
  axes.set_xlabel("tokens per forward pass")
  axes.set_ylabel("right answers, %")
  axes.set_title(where, fontsize=8)
  axes.legend(fontsize=8)
  axes.grid(alpha=0.3)
  figure.tight_layout()
  figure.savefig(_OUT.value, dpi=150)
  print(f"wrote {_OUT.value}")


if __name__ == "__main__":
  app.run(main)
