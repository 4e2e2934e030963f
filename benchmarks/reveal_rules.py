"""Which slots a denoising pass should reveal: four rules, swept.

    python -m benchmarks.reveal_rules [--questions=300] [--svg=F]

On the embedded checkpoint's held-out questions, blocks of 16:

    confidence  p1 >= t: what the library does
    margin      p1 - p2 >= t
    entropy     the slots of least entropy whose entropies, but for the largest,
                add up to at most t (the entropy bound of arXiv:2505.24857)
    learned     a two-layer perceptron on p1, p2, p3 and the entropy of the slot
                and of its neighbours says 'this token is final' with >= t,
                trained here on questions that are not held out

Each pass reveals at least the best slot. The rules stand in for the library's
own by name, so that everything else is the decoder as it is.
"""

import contextlib
import random
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from nemodiff_jax import api
from nemodiff_jax.decode import diffusion, sampling
from nemodiff_jax.decode.config import RowSettings, decode_config
from nemodiff_jax.evaluate import decoding, tasks
from nemodiff_jax.evaluate.statistics import ratio_interval, share_interval
from nemodiff_jax.nn.model import head
from pallas_kernels.range_attention import range_attention
from train import arithmetic

_QUESTIONS = flags.DEFINE_integer("questions", 300, "Held-out questions.")
_SVG = flags.DEFINE_string("svg", None, "Figure to write (needs matplotlib).")
BLOCK, LENGTH, ROWS, TRAINING = 16, 192, 32, 64
GRID = {
  "confidence": (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999),
  "margin": (0.3, 0.5, 0.7, 0.9, 0.95, 0.99, 0.999),
  "entropy": (0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0),
  "learned": (0.3, 0.5, 0.7, 0.9, 0.95, 0.99, 0.999),
}
COLORS = {"confidence": "#222222", "margin": "#0072b2", "entropy": "#009e73",
          "learned": "#d55e00"}  # fmt: skip


def entropy(logits):
  p = jax.nn.softmax(logits, -1)
  return -(p * jnp.log(jnp.maximum(p, 1e-30))).sum(-1)


def features(logits):
  """[B, T, V] -> [B, T, 12]: of the slot, of the one before, of the next."""
  top = jax.lax.top_k(jax.nn.softmax(logits, -1), 3)[0]
  odds = jnp.log((top + 1e-6) / (1 - top + 1e-6))
  own = jnp.concatenate([odds, entropy(logits)[..., None]], -1)
  before = jnp.concatenate([own[:, :1], own[:, :-1]], 1)
  after = jnp.concatenate([own[:, 1:], own[:, -1:]], 1)
  return jnp.concatenate([own, before, after], -1)


def score(net, x):
  hidden = jax.nn.relu(x @ net["w1"] + net["b1"][None, None])
  return (hidden @ net["w2"])[..., 0] + net["b2"]


def reveal_by_entropy(sure, candidates, threshold, quota):
  """`sure` is minus the entropy; ties go to the lower slot."""
  h = jnp.where(candidates, -sure, jnp.inf)
  rank = jnp.argsort(jnp.argsort(h, axis=1, stable=True), axis=1)
  ranked = jnp.sort(h, axis=1)
  spent = jnp.cumsum(ranked, 1) - ranked  # But for the largest: the last.
  count = (spent <= threshold[:, None]).sum(1)
  most = jnp.maximum(count.astype(jnp.int32), quota)
  return candidates & (rank < most[:, None])


@contextlib.contextmanager
def rule(name: str, net) -> Iterator[None]:
  """The decoder, with another measure of how sure it is."""
  by = {
    "margin": lambda logits, _: (
      -jnp.diff(jax.lax.top_k(jax.nn.softmax(logits, -1), 2)[0], axis=-1)[
        ..., 0
      ]
    ),
    "entropy": lambda logits, _: -entropy(logits),
    "learned": lambda logits, _: jax.nn.sigmoid(score(net, features(logits))),
  }
  jax.clear_caches()
  with contextlib.ExitStack() as stack:
    if name in by:
      stack.enter_context(mock.patch.object(sampling, "confidence", by[name]))
    if name == "entropy":
      stack.enter_context(
        mock.patch.object(diffusion, "reveal", reveal_by_entropy)
      )
    yield
  jax.clear_caches()


def training_blocks(model: api.Model) -> list[tuple[list[int], list[int]]]:
  """(prefix, block of ar's reply) of questions that are not held out."""
  rng, held = random.Random(5), set()
  for family in arithmetic.FAMILIES:
    held |= {q for q, _, _ in arithmetic.held_out(family, 400)}
  asked = [
    q
    for family in arithmetic.FAMILIES
    for q, _, _ in (arithmetic.example(rng, family) for _ in range(TRAINING))
    if q not in held
  ]
  row = RowSettings(max_new_tokens=112)
  chats = [(q, [{"role": "user", "content": q}]) for q in asked]
  prompts = decoding.prepare(model, chats, row)
  config = decode_config(model.config, "ar")
  outs = decoding.decode(model, config, prompts, row, 16)
  return [
    (prompt + o.token_ids[:at], o.token_ids[at : at + BLOCK])
    for prompt, o in zip(prompts, outs, strict=True)
    for at in range(0, len(o.token_ids) - BLOCK, BLOCK)
    if len(prompt) + at + BLOCK <= LENGTH
  ]


def train_net(model: api.Model):
  """The perceptron, from blocks whose slots are revealed at random speed."""
  blocks, rng = training_blocks(model), np.random.default_rng(0)
  mask: Any = model.config.mask_id
  params = model.weights.params

  @jax.jit
  def forward(tokens, ends, start):
    attend = lambda q, k, v, m: (range_attention(q, k, v, ends)[0], m)
    places = jnp.broadcast_to(
      jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape
    )
    none = (None,) * model.config.num_layers
    hidden, _ = model.module.apply(
      {"params": params}, tokens, places, attend, none
    )
    at = start[:, None] + jnp.arange(BLOCK, dtype=jnp.int32)[None]
    hidden = jnp.take_along_axis(hidden, at[..., None], 1)
    logits = head(model.module, params, hidden)
    ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, None]
    token = jnp.argmax(jnp.where(ids == mask, -jnp.inf, logits), -1)
    sure = jnp.take_along_axis(jax.nn.softmax(logits, -1), token[..., None], -1)
    return features(logits), token, sure[..., 0]

  xs, ys = [], []
  for i in range(0, len(blocks) - ROWS + 1, ROWS):
    part = blocks[i : i + ROWS]
    true = np.array([t for _, t in part])
    start = np.array([len(p) for p, _ in part], np.int32)
    canvas = np.where(np.arange(BLOCK) == 0, true, mask)
    for _ in range(3):
      tokens, ends = (np.zeros((ROWS, LENGTH), np.int32) for _ in range(2))
      for r, (prefix, _) in enumerate(part):
        n = len(prefix)
        tokens[r, :n], tokens[r, n : n + BLOCK] = prefix, canvas[r]
        ends[r, :n], ends[r, n : n + BLOCK] = np.arange(1, n + 1), n + BLOCK
      x, token, sure = jax.device_get(forward(tokens, ends, start))
      hidden = canvas == mask
      xs.append(x[hidden])
      ys.append((token == true)[hidden])
      bar = rng.uniform(0.3, 1.0, (ROWS, 1))
      best = np.where(hidden, sure, -1).argmax(1)[:, None] == np.arange(BLOCK)
      canvas = np.where(hidden & ((sure >= bar) | best), token, canvas)
  x, y = jnp.asarray(np.concatenate(xs)), jnp.asarray(np.concatenate(ys))
  print(f"{len(y)} slots to learn from, {100 * float(y.mean()):.1f} % final")
  key = jax.random.key(0)
  net = {
    "w1": jax.random.normal(key, (x.shape[1], 16)) * 0.3,
    "b1": jnp.zeros(16), "w2": jnp.zeros((16, 1)), "b2": jnp.float32(0),
  }  # fmt: skip
  adam = optax.adam(1e-2)

  def loss(net):
    z = score(net, x[None])[0]
    return optax.sigmoid_binary_cross_entropy(z, y.astype(jnp.float32)).mean()

  @jax.jit
  def step(net, state):
    updates, state = adam.update(jax.grad(loss)(net), state)
    return optax.apply_updates(net, updates), state

  state = adam.init(net)
  for _ in range(800):
    net, state = step(net, state)
  print(f"loss {float(loss(net)):.4f}")
  return net


def main(_) -> None:
  model, task = api.load(), tasks.embedded(_QUESTIONS.value)
  row = RowSettings(max_new_tokens=112)
  asked = [(q.id, q.prompt) for q in task.questions]
  prompts, net = decoding.prepare(model, asked, row), train_net(model)
  print("\n| rule | t | right % | 95 % | tokens/forward | 95 % |")
  print("|---|---|---|---|---|---|")
  points: dict[str, list] = {}
  for name, values in GRID.items():
    with rule(name, net):
      for t in values:
        config = decode_config(
          model.config, "diffusion", block_length=BLOCK, threshold=t
        )
        outs = list(decoding.decode(model, config, prompts, row, 16))
        right = np.mean([
          q.judge(o.text or "").score
          for q, o in zip(task.questions, outs, strict=True)
        ])  # fmt: skip
        tokens, nfe = [o.completion_tokens for o in outs], [o.nfe for o in outs]
        low, high = share_interval(float(right), len(outs))
        a, b = ratio_interval(tokens, nfe)
        speed = sum(tokens) / sum(nfe)
        points.setdefault(name, []).append((speed, 100 * right))
        print(
          f"| {name} | {t} | {100 * right:.1f} | {100 * low:.1f} to"
          f" {100 * high:.1f} | {speed:.2f} | {a:.2f} to {b:.2f} |",
          flush=True,
        )
  if _SVG.value:
    draw(points, _SVG.value)


def draw(points, path: str) -> None:
  from matplotlib.figure import Figure

  figure = Figure(figsize=(5.6, 3.6), layout="constrained")
  axes = figure.subplots()
  for name, part in points.items():
    axes.plot(
      *zip(*part, strict=True), marker="o", label=name, color=COLORS[name]
    )
  axes.set_xlabel("tokens per forward pass")
  axes.set_ylabel("right, %")
  axes.grid(alpha=0.3)
  axes.legend(frameon=False)
  figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
  app.run(main)
