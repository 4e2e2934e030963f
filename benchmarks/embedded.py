"""The figures on the embedded checkpoint's card.

    .venv/bin/python -m benchmarks.embedded [--checkpoint=DIR] [--questions=100]

Held-out questions (seeds and questions that training leaves out): loss,
accuracy, tokens per forward, agreement with ar; and wall-clock at batch 1 against
ar, runs in turn: of the compiled loop alone, and with the prefill before it.
"""

import collections
import dataclasses
import os
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from nemodiff_jax import api
from nemodiff_jax.api import Model, generate_rows
from nemodiff_jax.decode import driver
from nemodiff_jax.decode.config import MODES, RowSettings, decode_config
from nemodiff_jax.decode.generate import start
from nemodiff_jax.decode.log import fold, new_log
from train import arithmetic
from train.configs import tiny
from train.corruption import Rows
from train.documents import encode_record
from train.settings import make_plan
from train.stack import stack_layers
from train.step import loss_joint, prepare_joint

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Default: embedded.")
_QUESTIONS = flags.DEFINE_integer("questions", 100, "Per family.")

RUNS = (
  ("ar", {}),
  ("linear_spec", {"block_length": 8}),
  ("linear_spec", {"block_length": 16}),
  ("linear_spec", {"block_length": 32}),
  ("quadratic_spec", {"block_length": 8}),
  ("quadratic_spec", {"block_length": 16}),
  ("diffusion", {"block_length": 8}),
  ("diffusion", {"block_length": 16}),
  ("diffusion", {"block_length": 16, "threshold": 0.99}),
  ("diffusion", {"block_length": 32}),
)


def encode(model: Model, question: str) -> list[int]:
  return api.prepare(
    model, [{"role": "user", "content": question}], RowSettings()
  )


def decode(model, prompts, mode, how):
  config = decode_config(model.config, mode, **how)
  rows = [RowSettings(max_new_tokens=112)] * len(prompts)
  return list(generate_rows(model, config, prompts, rows, 16))


def label(mode: str, how: dict) -> str:
  said = [mode]
  if "block_length" in how:
    said.append(f"C={how['block_length']}")
  if "threshold" in how:
    said.append(f"at {how['threshold']}")
  return " ".join(said)


def accuracy(model: Model, count: int, modes=MODES) -> None:
  sets = {f: arithmetic.held_out(f, count) for f in arithmetic.FAMILIES}
  print(
    "| mode | "
    + " | ".join(f"{f}: right %, tokens/forward" for f in sets)
    + " | accepted per cycle | same as ar |"
  )
  print("|---" * (len(sets) + 3) + "|")
  reference = {}
  for mode, how in RUNS:
    if mode not in modes:
      continue
    cells, same, accepted = [], [], []
    for family, examples in sets.items():
      prompts = [encode(model, q) for q, _, _ in examples]
      outs = decode(model, prompts, mode, how)
      reference.setdefault(family, [o.token_ids for o in outs])
      ends = [f"The answer is {a}." for _, _, a in examples]
      right = [str(o.text).endswith(e) for o, e in zip(outs, ends, strict=True)]
      tokens = sum(o.completion_tokens for o in outs)
      passes = sum(o.nfe for o in outs)
      cells.append(f"{100 * np.mean(right):.0f}, {tokens / passes:.2f}")
      accepted += [n for o in outs for n in o.accepted or ()]
      same += [
        o.token_ids == r for o, r in zip(outs, reference[family], strict=True)
      ]
    print(
      f"| {label(mode, how)} | {' | '.join(cells)} |"
      f" {f'{np.mean(accepted):.2f}' if accepted else '-'} |"
      f" {sum(same)} of {len(same)} |",
      flush=True,
    )


def losses(model: Model, count: int) -> None:
  """Held-out losses, corrupted as train/configs/tiny.py corrupts."""
  config, size = tiny.get_config(), 128
  config.hard_weight = 1.0
  documents = [
    encode_record(
      {
        "messages": [
          {"role": "user", "content": question},
          {"role": "assistant", "content": answer},
        ]
      },
      model.tokenizer,
      model.template,
      model.config.eos_ids,
    )
    for family in arithmetic.FAMILIES
    for question, answer, _ in arithmetic.held_out(family, count)
  ]
  tokens = np.full((len(documents), size), model.config.eos_ids[0], np.int32)
  supervised = np.zeros(tokens.shape, bool)
  for row, document in enumerate(documents):
    ids = document["tokens"][:size]
    tokens[row, : len(ids)] = ids
    supervised[row, : len(ids)] = document["supervised"][:size]
  rows = Rows(
    tokens=jnp.asarray(tokens),
    supervised=jnp.asarray(supervised),
    start=jnp.zeros(tokens.shape, jnp.int32),
    example=jnp.arange(len(tokens), dtype=jnp.int32),
  )
  plan = make_plan(config, model.config, 16)
  hard = jnp.zeros(model.config.vocab_size, bool)
  params = stack_layers(model.weights.params, model.config.num_layers)

  @jax.jit
  def run(params, rows):
    part = prepare_joint(plan, plan.key(jnp.int32(0)), rows, hard)
    return loss_joint(plan, params, {}, part)[1]

  parts = run(params, rows)
  print(
    f"\nheld-out loss per token: ar {float(parts['ar']):.4f}, diffusion"
    f" {float(parts['diffusion']):.4f}"
  )


def timed(model: Model, prompt: list[int], mode: str, how: dict):
  """Seconds of the prefill and of the compiled loop, batch 1."""
  config = decode_config(model.config, mode, **how)
  row, begun = RowSettings(max_new_tokens=112), time.perf_counter()
  decoder, state, emitted = start(
    model.module, model.weights, config, [prompt], [row]
  )
  log = new_log(decoder, 1, state.capacity)
  begun = jax.block_until_ready((state, fold(log, state, emitted)))
  ready = time.perf_counter()
  jax.block_until_ready(driver.run(decoder, model.weights, *begun))
  return ready - begun, time.perf_counter() - ready


def wall_clock(model: Model) -> None:
  """Modes in turn on every prompt; ratios of sums of medians to ar."""
  prompts = {
    f: [encode(model, q) for q, _, _ in arithmetic.held_out(f, 12)]
    for f in arithmetic.FAMILIES
  }
  seconds = collections.defaultdict(list)
  for _ in range(8):  # The first round compiles.
    for family, rows in prompts.items():
      for i, prompt in enumerate(rows):
        for mode, how in RUNS:
          key = label(mode, how), family, i
          seconds[key].append(timed(model, prompt, mode, how))
  best = {k: np.median(v[1:], 0) for k, v in seconds.items()}

  def total(name: str, family: str) -> np.ndarray:  # [prefill, loop]
    return np.sum([v for k, v in best.items() if k[:2] == (name, family)], 0)

  print(
    "\n| batch 1, compiled loop against ar's | "
    + " | ".join(prompts)
    + " | all | all, with prefill |"
  )
  print("|---" * (len(prompts) + 3) + "|")
  ar = {f: total("ar", f) for f in prompts}
  for mode, how in RUNS:
    mine = {f: total(label(mode, how), f) for f in prompts}
    cells = [f"{ar[f][1] / mine[f][1]:.2f}" for f in prompts]
    a, b = (np.sum(list(x.values()), 0) for x in (ar, mine))
    cells += [f"{a[1] / b[1]:.2f}", f"{a.sum() / b.sum():.2f}"]
    print(f"| {label(mode, how)} | {' | '.join(cells)} |")


def main(_) -> None:
  model = api.load(_CHECKPOINT.value)
  print(
    f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores {platform.machine()},"
    f" Python {platform.python_version()}, jax {jax.__version__},"
    f" {_QUESTIONS.value} held-out questions a family, float32\n"
  )
  accuracy(model, _QUESTIONS.value)
  losses(model, _QUESTIONS.value)
  wall_clock(model)
  if model.weights.lora is not None:
    weights = dataclasses.replace(model.weights, lora=None)
    print("\nWithout the drafter:\n")
    plain = dataclasses.replace(model, weights=weights)
    accuracy(plain, _QUESTIONS.value, ("ar", "linear_spec"))


if __name__ == "__main__":
  app.run(main)
