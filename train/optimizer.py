"""Optimisers and the warm-up, stable, decay schedule."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
import optax.contrib

from nemodiff_jax.nn.model import Params

OPTIMIZERS = ("adamw", "muon")


def schedule(c: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
  """Linear warm-up to lr, constant, linear decay to final_lr.

  The first step has lr / warmup, the last one final_lr (lr where nothing
  decays).

  Args:
    c: config.optimizer; warmup in steps, decay as a share of all steps.
    steps: of the run.
  """
  start = max(c.warmup, steps - round(steps * c.decay))
  down = max(1, steps - start)

  def rate(count):
    """Of the step that follows `count` others."""
    count = jnp.asarray(count, jnp.float32)
    warm = jnp.minimum(1.0, (count + 1) / max(1, c.warmup))
    left = jnp.clip((steps - 1 - count) / down, 0.0, 1.0)
    decayed = c.lr * left + c.final_lr * (1 - left)
    return jnp.where(count < start, c.lr * warm, decayed)

  return rate


def make_optimizer(
  c: ml_collections.ConfigDict, steps: int, params: Params
) -> optax.GradientTransformation:
  """AdamW; or muon on the layers' matrices and Adam (Nesterov's) elsewhere.

  Norms are never decayed. Gradients are clipped to a global norm first.
  """
  rate = schedule(c, steps)
  decayed = _map(params, lambda name, x: not name.endswith("norm/weight"))
  if c.name == "muon":
    matrix = optax.contrib.MuonDimensionNumbers(1, 2)
    kinds = _map(
      params,
      lambda name, x: matrix if "layers" in name and x.ndim == 3 else None,
    )
    inner = optax.contrib.muon(
      rate,
      beta=0.9,
      consistent_rms=0.2,
      adam_b1=c.b1,
      adam_b2=c.b2,
      eps=c.eps,
      muon_weight_dimension_numbers=kinds,
    )
    # Optax's own decay leaves out what Adam trains.
    inner = optax.chain(inner, _decay(rate, c.weight_decay, decayed))
  else:
    inner = optax.adamw(
      rate, c.b1, c.b2, c.eps, weight_decay=c.weight_decay, mask=decayed
    )
  return optax.chain(optax.clip_by_global_norm(c.clip), inner)


def _decay(
  rate: optax.Schedule, size: float, decayed: Any
) -> optax.GradientTransformation:
  """Takes rate * size of each decayed parameter off it."""

  def update(updates: Any, state: Any, params: Any = None, **_: Any):
    share = rate(state) * size  # The state is the count of steps.
    less = lambda u, p, here: u - share * p if here else u
    return jax.tree.map(less, updates, params, decayed), state + 1

  return optax.GradientTransformation(
    lambda params: jnp.zeros((), jnp.int32), update
  )


def _map(params: Params, make) -> Any:
  """make(path, array) for every parameter."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: make("/".join(str(k.key) for k in path), x), params
  )
