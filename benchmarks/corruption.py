"""What moves the accuracy of diffusion: how training corrupts its rows.

    .venv/bin/python benchmarks/corruption.py [--steps=150] [--questions=100]

Each variant goes on from the embedded checkpoint for the same number of steps
with the same texts, learning rate and seed; only the corruption differs. Then
held-out questions: accuracy of ar, and of diffusion at 0.9 with C = 16.
"""

import dataclasses
import functools
import os
import platform
import random
import time

import jax
import numpy as np
import optax
import tqdm
from absl import app, flags

from nemodiff_jax import api
from nemodiff_jax.api import Model, generate_rows
from nemodiff_jax.decode.config import RowSettings, decode_config
from nemodiff_jax.decode.state import Weights
from train import arithmetic
from train.corruption import Corruption, corrupt
from train.losses import joint_loss

_STEPS = flags.DEFINE_integer("steps", 150, "Optimiser steps per variant.")
_QUESTIONS = flags.DEFINE_integer("questions", 100, "Per family.")
_RATE = flags.DEFINE_float("rate", 2e-3, "Peak learning rate.")
_SEED = flags.DEFINE_integer("seed", 1, "Of texts, corruption and blocks.")
_ONLY = flags.DEFINE_multi_string("only", [], "Variants to run; default: all.")

LENGTH, NOISY, ROWS = 112, 128, 18
HARD_WEIGHT = 2.5
VARIANTS = {
  "as trained: draft 45 %, uniform 25 %, hard-last 30 %": Corruption(),
  "uniform only, t in [0.001, 1]": Corruption(0.0, 1.0, 0.0, (0.001, 1.0)),
  "uniform only, t in [0.1, 1]": Corruption(0.0, 1.0, 0.0),
  "uniform only, t in [0.5, 1]": Corruption(0.0, 1.0, 0.0, (0.5, 1.0)),
  "draft only (all masked)": Corruption(1.0, 0.0, 0.0),
  "hard-last only (digits masked)": Corruption(0.0, 0.0, 1.0),
}


def batches(model: Model, corruption: Corruption, seed: int):
  """Endless batches of one shape; the held-out questions are left out."""
  rng, noise = random.Random(seed), np.random.default_rng(seed)
  config, tokenizer = model.config, model.tokenizer
  if tokenizer is None or config.mask_id is None:
    raise SystemExit("expected a tri-mode checkpoint with a tokenizer")
  held = {
    q for f in arithmetic.FAMILIES for q, *_ in arithmetic.held_out(f, 500)
  }
  words = [tokenizer.decode([i]).strip() for i in range(config.vocab_size)]
  hard = np.array([w.isdigit() for w in words])
  while True:
    pairs = []
    while len(pairs) < ROWS:
      family = rng.choice(arithmetic.FAMILIES)
      question, answer, _ = arithmetic.example(rng, family)
      prompt = api.prepare(
        model, [{"role": "user", "content": question}], RowSettings()
      )
      reply = [*tokenizer.encode(answer)[1:], config.eos_ids[0]]
      if question not in held and len(prompt) + len(reply) <= LENGTH:
        pairs.append((prompt, reply))
    yield corrupt(
      noise,
      pairs,
      length=LENGTH,
      noisy=NOISY,
      block=int(noise.choice((8, 16, 32))),
      mask_id=config.mask_id,
      eos_id=config.eos_ids[0],
      hard=hard,
      hard_weight=HARD_WEIGHT,
      how=corruption,
    )


def train_on(model: Model, corruption: Corruption) -> Model:
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, _RATE.value, 20, _STEPS.value
  )
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(schedule, 0.9, 0.98)
  )

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state, batch):
    loss = lambda p: joint_loss(model.module, p, batch, 1.0)
    grads, parts = jax.grad(loss, has_aux=True)(params)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, parts

  params = jax.tree.map(lambda x: x.copy(), model.weights.params)
  state, source = (
    optimizer.init(params),
    batches(model, corruption, _SEED.value),
  )
  for _ in tqdm.tqdm(range(_STEPS.value), unit="step", disable=None):
    params, state, _ = step(params, state, next(source))
  return dataclasses.replace(model, weights=Weights(params))


def figures(model: Model, mode: str, **how) -> str:
  """'right % per family, tokens per forward over all'."""
  config = decode_config(model.config, mode, **how)
  right, tokens, passes = [], 0, 0
  for family in arithmetic.FAMILIES:
    examples = arithmetic.held_out(family, _QUESTIONS.value)
    prompts = [
      api.prepare(model, [{"role": "user", "content": q}], RowSettings())
      for q, *_ in examples
    ]
    rows = [RowSettings(max_new_tokens=112)] * len(prompts)
    outs = list(generate_rows(model, config, prompts, rows, 16))
    ends = [f"The answer is {a}." for *_, a in examples]
    right.append(
      100
      * np.mean(
        [str(o.text).endswith(e) for o, e in zip(outs, ends, strict=True)]
      )
    )
    tokens += sum(o.completion_tokens for o in outs)
    passes += sum(o.nfe for o in outs)
  return ", ".join(f"{r:.0f}" for r in right) + f" | {tokens / passes:.2f}"


def main(_) -> None:
  start = api.load()
  print(
    f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores {platform.machine()},"
    f" jax {jax.__version__}, {_STEPS.value} steps of {ROWS} rows, AdamW"
    f" {_RATE.value}, seed {_SEED.value}, {_QUESTIONS.value} questions a family\n"
  )
  print(
    "| corruption | ar: chain, legs, time % | diffusion C = 16 at 0.9: % |"
    " tokens/forward | at 0.99: % | tokens/forward |\n|---|---|---|---|---|---|"
  )
  named = {"the embedded checkpoint itself": None, **VARIANTS}
  for name, corruption in named.items():
    if _ONLY.value and not any(name.startswith(o) for o in _ONLY.value):
      continue
    model = start if corruption is None else train_on(start, corruption)
    ar = figures(model, "ar").split(" | ")[0]
    cells = [
      figures(model, "diffusion", block_length=16, threshold=t)
      for t in (0.9, 0.99)
    ]
    print(f"| {name} | {ar} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
  app.run(main)
