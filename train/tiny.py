"""Trains a small tri-mode checkpoint on a CPU, and writes it as released ones.

    python -m train.tiny --out=DIR --steps=5500

It learns worked arithmetic (train/arithmetic.py). The result is a folder in
the Hugging Face layout: config.json, model.safetensors, tokenizer.model,
chat_template.jinja.
"""

import dataclasses
import functools
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import optax
import optax.contrib
import tqdm
from absl import app, flags

from checkpoints_convert.hf_folder import write_folder
from nemodiff_jax.io.checkpoint import tensor_table
from nemodiff_jax.nn.config import ModelConfig, RopeConfig, to_hf
from nemodiff_jax.nn.model import Params, Transformer, count_params, init_params
from train import arithmetic
from train.corruption import corrupt
from train.losses import Batch, joint_loss
from train.tokenizer import MASK, chat_prompt, train_tokenizer

_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
_STEPS = flags.DEFINE_integer("steps", 5500, "Optimiser steps.")
_LR = flags.DEFINE_float("lr", 5e-3, "Peak learning rate.")
_HIDDEN = flags.DEFINE_integer("hidden", 192, "Model width.")
_LAYERS = flags.DEFINE_integer("layers", 5, "Layers.")
_TOKENS = flags.DEFINE_integer("tokens", 2000, "Clean tokens per step.")
_SEED = flags.DEFINE_integer("seed", 0, "Of everything random.")

HEAD_DIM = 32
BLOCKS = (8, 16, 32)
DIFFUSION_WEIGHT = 1.0
HARD_WEIGHT = 2.5  # Digits are what the answers turn on.
Pair = tuple[list[int], list[int]]

# The model is trained on single questions: what came before is left out.
CHAT_TEMPLATE = """\
{%- set last = namespace(user=0) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{%- set last.user = loop.index0 -%}
{%- elif message.role != 'assistant' -%}{{ raise_exception('roles should be user or assistant') }}
{%- endif -%}
{%- endfor -%}
{#- The model knows single questions only: what came before is left out. -#}
{%- for message in messages[last.user:] -%}
{%- if message.role == 'user' -%}<|user|>{{ message.content }}
{%- else -%}<|assistant|>{{ message.content }}</s>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""


@dataclasses.dataclass(frozen=True)
class Shape:
  """A bucket of rows: L clean positions, M noisy slots."""

  length: int
  noisy: int


def main(_: list[str]) -> None:
  out, rng = Path(_OUT.value), random.Random(_SEED.value)
  texts = _texts(rng)
  model = train_tokenizer(out, _tokenizer_lines(texts, rng), 320)
  encode = lambda q, a: (
    [model.bos_id(), *model.encode(chat_prompt(q))],
    [*model.encode(a), model.eos_id()],
  )
  config = _config(model)
  hard = np.array(
    [
      model.id_to_piece(i).strip("\u2581").isdigit()
      for i in range(config.vocab_size)
    ]
  )
  _write_texts(out, config)
  params = init_params(config, jax.random.key(_SEED.value))
  params = _spread(params, config)
  print(f"{count_params(params):,} parameters, vocabulary {config.vocab_size}")
  start = time.time()
  params = _train(config, params, texts, encode, hard, out)
  print(f"trained {_STEPS.value} steps in {time.time() - start:.0f} s: {out}")


def _train(config, params, texts, encode, hard, out: Path) -> Params:
  module = Transformer(config)
  optimizer = _optimizer(params)
  state = optimizer.init(params)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state, batch: Batch):
    loss = lambda p: joint_loss(module, p, batch, DIFFUSION_WEIGHT)
    grads, parts = jax.grad(loss, has_aux=True)(params)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, parts

  batches = _batches(config, texts, encode, hard)
  bar = tqdm.tqdm(range(_STEPS.value), unit="step", mininterval=5)
  recent = []
  for i in bar:
    params, state, parts = step(params, state, next(batches))
    recent.append(parts)
    if i % 50 == 49:
      mean = {k: float(np.mean([p[k] for p in recent])) for k in parts}
      recent = []
      bar.set_postfix({k: f"{v:.3f}" for k, v in mean.items()})
      _log(out, {"step": i + 1, **mean})
    if i % 1000 == 999:
      _save(out, config, params)
  _save(out, config, params)
  return params


def _optimizer(params: Params) -> optax.GradientTransformation:
  """Muon on the matrices of the layers, Adam on the rest."""
  schedule = optax.join_schedules(
    [
      optax.linear_schedule(0.0, _LR.value, 50),
      optax.constant_schedule(_LR.value),
      optax.linear_schedule(_LR.value, 0.02 * _LR.value, _STEPS.value * 2 // 3),
    ],
    [50, max(51, _STEPS.value // 3)],
  )
  kinds = jax.tree_util.tree_map_with_path(
    lambda path, x: (
      optax.contrib.MuonDimensionNumbers()
      if x.ndim == 2 and str(path[0].key).startswith("layers")
      else None
    ),
    params,
  )
  return optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.contrib.muon(
      schedule,
      beta=0.9,
      consistent_rms=0.2,
      adam_b1=0.9,
      adam_b2=0.98,
      muon_weight_dimension_numbers=kinds,
    ),
  )


def _batches(config, texts, encode, hard) -> Iterator[Batch]:
  """Endless batches; all rows of a batch share a shape and a block length."""
  rng = np.random.default_rng(_SEED.value)
  shapes = (Shape(64, 64), Shape(96, 96), Shape(112, 128))
  waiting: dict[Shape, list[Pair]] = {shape: [] for shape in shapes}
  for question, answer in texts:
    prompt, reply = encode(question, answer)
    fits = [
      s
      for s in shapes
      if len(prompt) + len(reply) <= s.length and len(reply) <= s.noisy
    ]
    if not fits:
      continue
    shape = fits[0]
    waiting[shape].append((prompt, reply))
    if len(waiting[shape]) == max(2, _TOKENS.value // shape.length):
      yield corrupt(
        rng,
        waiting[shape],
        length=shape.length,
        noisy=shape.noisy,
        block=int(rng.choice(BLOCKS)),
        mask_id=config.mask_id,
        eos_id=config.eos_ids[0],
        hard=hard,
        hard_weight=HARD_WEIGHT,
      )
      waiting[shape] = []


def _texts(rng: random.Random) -> Iterator[tuple[str, str]]:
  """Endless (question, answer) pairs."""
  families = arithmetic.FAMILIES
  held = {q for f in families for q, *_ in arithmetic.held_out(f, 500)}
  while True:
    family = rng.choices((*families, "drill"), (0.25, 0.25, 0.2, 0.3))[0]
    question, answer, _ = arithmetic.example(rng, family)
    if question not in held:
      yield question, answer


def _tokenizer_lines(texts, rng) -> Iterator[str]:
  for _ in range(4000):
    question, answer = next(texts)
    yield question
    yield answer


def _config(model) -> ModelConfig:
  hidden = _HIDDEN.value
  return ModelConfig(
    vocab_size=model.vocab_size(),
    hidden_size=hidden,
    intermediate_size=3 * hidden,
    num_layers=_LAYERS.value,
    num_heads=hidden // HEAD_DIM,
    num_kv_heads=2,
    head_dim=HEAD_DIM,
    max_positions=2048,
    rope=RopeConfig(theta=1e4),
    block_size=16,
    mask_id=model.piece_to_id(MASK),
    bos_id=model.bos_id(),
    eos_ids=(model.eos_id(),),
  )


def _spread(params: Params, config: ModelConfig) -> Params:
  """Starting sizes for a narrow model: 1 / sqrt(fan in), unit embeddings."""

  def scale(path, x):
    if x.ndim != 2:
      return x
    name = path[-2].key
    size = 1.0 if name == "embed_tokens" else x.shape[0] ** -0.5
    if name in ("o_proj", "down_proj"):
      size /= (2 * config.num_layers) ** 0.5
    return x / 0.02 * size * (0.5 if name == "diffusion_head" else 1.0)

  return jax.tree_util.tree_map_with_path(scale, params)


def _write_texts(out: Path, config: ModelConfig) -> None:
  (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
  (out / "tokenizer_config.json").write_text(
    json.dumps({"add_bos_token": True, "eos_token": "</s>"}, indent=2) + "\n"
  )


def _save(out: Path, config: ModelConfig, params: Params) -> None:
  write_folder(
    out, to_hf(config), tensor_table(config), params, dtype=ml_dtypes.bfloat16
  )


def _log(out: Path, entry: dict) -> None:
  with (out / "metrics.jsonl").open("a") as file:
    file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
  app.run(main)
