"""Optimiser steps worked out in NumPy; what the guard lets through."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

from train.configs import base
from train.optimizer import make_optimizer, schedule
from train.step import init_state, make_step

LR, B1, B2, EPS, DECAY, CLIP = 0.1, 0.9, 0.95, 1e-8, 0.3, 1.0


@pytest.fixture(autouse=True)
def _ordinary(ordinary):
  """Optax needs JAX's usual promotion."""


def settings(**changes):
  c = base.get_config().optimizer
  c.update({"lr": LR, "final_lr": LR, "warmup": 0, "b1": B1, "b2": B2})
  c.update({"eps": EPS, "weight_decay": DECAY, "clip": CLIP})
  c.update(changes)
  return c


def some(seed: int, size: float):
  """A model's tree: matrices of two layers, norms, an embedding, a head."""
  rng = np.random.default_rng(seed)
  draw = lambda *s: (size * rng.standard_normal(s)).astype(np.float32)
  return {
    "embed_tokens": {"embedding": draw(5, 3)},
    "layers": {
      "input_layernorm": {"weight": draw(2, 3)},
      "mlp": {"down_proj": {"kernel": draw(2, 4, 3)}},
    },
    "norm": {"weight": draw(3)},
    "diffusion_head": {"kernel": draw(3, 5)},
  }


def leaves(tree) -> dict[str, np.ndarray]:
  flat = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(p): np.asarray(x, np.float64) for p, x in flat}


def run(c, params, gradients, steps=50):
  """The parameters after a step with each of the gradients."""
  optimizer = make_optimizer(c, steps, params)
  state = optimizer.init(params)

  @jax.jit
  def step(g, state, params):
    updates, state = optimizer.update(g, state, params)
    return optax.apply_updates(params, updates), state

  for g in gradients:
    params, state = step(g, state, params)
  return leaves(params)


def clipped(gradient):
  g = leaves(gradient)
  norm = np.sqrt(sum((x**2).sum() for x in g.values()))
  return {k: x * min(1.0, CLIP / norm) for k, x in g.items()}


def adam(params, gradients, rates, nesterov=False):
  """AdamW by its definition, gradients clipped to a global norm first."""
  p = leaves(params)
  m, v = ({k: 0.0 for k in p} for _ in range(2))
  for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), 1):
    g = clipped(g)
    for k in p:
      m[k] = B1 * m[k] + (1 - B1) * g[k]
      v[k] = B2 * v[k] + (1 - B2) * g[k] ** 2
      mean = m[k] / (1 - B1**t)
      if nesterov:
        ahead = B1 * m[k] / (1 - B1 ** (t + 1))
        mean = ahead + (1 - B1) * g[k] / (1 - B1**t)
      step = mean / (np.sqrt(v[k] / (1 - B2**t)) + EPS)
      p[k] = p[k] - lr * (step + DECAY * ("norm" not in k) * p[k])
  return p


@pytest.mark.parametrize("size", [0.01, 3.0])
def test_adamw_clips_decays_and_steps_as_by_hand(size):
  """Below and above the clip; norms are not decayed, all else is."""
  params, gradients = some(0, 1.0), [some(i, size) for i in (1, 2, 3)]
  c = settings(lr=0.2, warmup=2)
  expected = adam(params, gradients, (0.1, 0.2, 0.2))
  found = run(c, params, gradients)
  for k, x in expected.items():
    np.testing.assert_allclose(found[k], x, rtol=2e-5, atol=2e-6, err_msg=k)


def newton_schulz(x):
  """Five quintic iterations, with the published coefficients."""
  turned = x.shape[0] > x.shape[1]
  x = (x.T if turned else x) / np.linalg.norm(x)
  for _ in range(5):
    a = x @ x.T
    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
  return x.T if turned else x


def test_muon_turns_each_layers_matrix_and_adam_the_rest():
  params, gradient = some(0, 1.0), some(1, 0.01)
  found = run(settings(name="muon"), params, [gradient])
  expected = adam(params, [gradient], (LR,), nesterov=True)
  name = "['layers']['mlp']['down_proj']['kernel']"
  before, g = leaves(params)[name], clipped(gradient)[name]
  for layer in range(2):  # The root mean square of each is 0.2.
    turned = 0.2 * np.sqrt(4) * newton_schulz(g[layer])
    expected[name][layer] = before[layer] - LR * (
      turned + DECAY * before[layer]
    )
  for k, x in expected.items():
    np.testing.assert_allclose(found[k], x, rtol=2e-4, atol=2e-5, err_msg=k)


@pytest.mark.parametrize(
  "changes, steps, rates",
  [
    ({"warmup": 4, "decay": 0.3}, 10, [0.25, 0.5, 0.75, 1, 1, 1, 1, 0.7, 0.4, 0.1]),
    ({"warmup": 0, "decay": 1.0}, 3, [0.7, 0.4, 0.1]),
    ({"warmup": 2, "decay": 0.0}, 4, [0.5, 1, 1, 1]),
    ({"warmup": 3, "decay": 1.0}, 5, [1 / 3, 2 / 3, 1, 0.55, 0.1]),
    ({"warmup": 1, "decay": 0.2}, 1, [1.0]),
  ],
)  # fmt: skip
def test_the_first_step_learns_and_the_last_has_the_final_rate(
  changes, steps, rates
):
  rate = schedule(settings(lr=1.0, final_lr=0.1, **changes), steps)
  found = [float(rate(i)) for i in range(steps)]
  np.testing.assert_allclose(found, rates, rtol=1e-6)


@struct.dataclass
class ToyBatch:
  """Rows, and what their loss is multiplied by."""

  rows: jax.Array
  counts: jax.Array


def toy_step(optimizer):
  """A step that lowers sum(w * hard): a hard token of nan makes it bad."""
  stack = types.SimpleNamespace(mesh=None)
  plan = types.SimpleNamespace(key=lambda s: s, accumulate=1, stack=stack)
  prepare = lambda plan, key, rows, hard: ToyBatch(rows, hard)
  loss = lambda plan, params, frozen, part: (
    (params["w"] * part.counts).sum() * part.rows.sum(),
    {},
  )
  return make_step(plan, optimizer, prepare, loss)


def test_a_bad_step_changes_nothing_but_the_counters():
  """Parameters, moments and the schedule's count; then a good step follows."""
  optimizer = optax.adam(optax.linear_schedule(0.1, 0.5, 4))
  step = toy_step(optimizer)
  rows, good = jnp.ones((2, 3)), jnp.arange(1.0, 4.0)
  fresh = lambda: init_state(optimizer, {"w": jnp.arange(3.0)})
  once, _ = step(fresh(), {}, rows, good)
  kept = jax.device_get(once)
  state, counts = once, []
  for bad in (jnp.nan, jnp.inf, jnp.nan):
    state, metrics = step(state, {}, rows, good.at[1].set(bad))
    counts.append((int(metrics["skipped"]), int(metrics["bad_run"])))
    assert not np.isfinite([metrics["loss"], metrics["grad_norm"]]).all()
  assert counts == [(1, 1), (2, 2), (3, 3)]
  assert int(state.step) == 4
  for name in ("params", "opt_state"):
    jax.tree.map(
      np.testing.assert_array_equal, getattr(state, name), getattr(kept, name)
    )
  state, metrics = step(state, {}, rows, good)
  assert (int(metrics["skipped"]), int(metrics["bad_run"])) == (3, 0)
  twice, _ = step(step(fresh(), {}, rows, good)[0], {}, rows, good)
  np.testing.assert_array_equal(state.params["w"], twice.params["w"])
