"""Optimisers and the warm-up, stable, decay schedule."""

from typing import Any

import jax
import ml_collections
import optax
import optax.contrib

from nemodiff_jax.nn.model import Params

OPTIMIZERS = ("adamw", "muon")


def schedule(c: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
  """Linear warm-up to lr, constant, linear decay to final_lr at the end.

  Args:
    c: config.optimizer; warmup in steps, decay as a share of all steps.
    steps: of the run.
  """
  decay = max(1, round(steps * c.decay))
  start = max(c.warmup + 1, steps - decay)
  return optax.join_schedules(
    [
      optax.linear_schedule(0.0, c.lr, c.warmup),
      optax.constant_schedule(c.lr),
      optax.linear_schedule(c.lr, c.final_lr, decay),
    ],
    [c.warmup, start],
  )


def make_optimizer(
  c: ml_collections.ConfigDict, steps: int, params: Params
) -> optax.GradientTransformation:
  """AdamW, or muon on the layers' matrices and Adam elsewhere.

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
      weight_decay=c.weight_decay,
      weight_decay_mask=decayed,
      muon_weight_dimension_numbers=kinds,
    )
  else:
    inner = optax.adamw(
      rate, c.b1, c.b2, c.eps, weight_decay=c.weight_decay, mask=decayed
    )
  return optax.chain(optax.clip_by_global_norm(c.clip), inner)


def _map(params: Params, make) -> Any:
  """make(path, array) for every parameter."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: make("/".join(str(k.key) for k in path), x), params
  )
