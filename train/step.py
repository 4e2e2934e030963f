"""One optimiser step: corrupt, count, accumulate gradients, update."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from nemodiff_jax.nn import xla
from nemodiff_jax.nn.model import Params
from train.corruption import Canvas, Corruption, Rows, corrupt
from train.losses import Joint, align, count, joint_loss
from train.mesh import constrain
from train.stack import Stack

Metrics = dict[str, Array]


@struct.dataclass
class TrainState:
  """What a run carries from step to step.

  Attributes:
    step: steps done.
    params: what is trained, float32, layers stacked.
    opt_state: of the optimiser.
    skipped: steps skipped so far because of a loss or gradient that is not
      finite.
    consecutive_bad: how many of the last steps were skipped.
  """

  step: Int[Array, ""]
  params: Params
  opt_state: Any
  skipped: Int[Array, ""]
  consecutive_bad: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Plan:
  """Everything about a step that is fixed for a run.

  Attributes:
    stack: how the layers run.
    joint: the objective of joint training.
    recipe: how rows are corrupted.
    canvas: sizes and ids of the noisy half.
    accumulate: microbatches in which a batch is computed.
    seed: of all noise.
  """

  stack: Stack
  joint: Joint
  recipe: Corruption
  canvas: Canvas
  accumulate: int = 1
  seed: int = 0

  def key(self, step: Int[Array, ""]) -> Array:
    """The key of a step's noise; rows fold in their example index."""
    return jax.random.fold_in(jax.random.key(self.seed), step)


Loss = Callable[[Plan, Params, Params, Any], tuple[Array, Metrics]]
Prepare = Callable[[Plan, Array, Rows, Array], tuple[Any, Any]]


def init_state(
  optimizer: optax.GradientTransformation, params: Params
) -> TrainState:
  """A state at step 0."""
  zero = lambda: jnp.zeros((), jnp.int32)
  return TrainState(zero(), params, optimizer.init(params), zero(), zero())


def prepare_joint(
  plan: Plan, key: Array, rows: Rows, hard: Bool[Array, "V"]
) -> tuple[Any, Any]:
  """(what the loss needs of each row, what it needs of the whole batch)."""
  noisy = None
  if plan.joint.diffusion_weight:
    noisy = corrupt(key, rows, plan.recipe, plan.canvas, hard)
  targets = align(rows, noisy, hard, plan.joint.hard_weight)
  return (rows, noisy, targets), count(plan.joint, targets, noisy)


def loss_joint(
  plan: Plan, params: Params, frozen: Params, part: Any
) -> tuple[Array, Metrics]:
  """The joint loss of some of the rows."""
  (rows, noisy, targets), counts = part
  return joint_loss(
    plan.stack,
    plan.joint,
    params,
    rows,
    noisy,
    targets,
    counts,
    plan.canvas.block,
  )


def make_step(
  plan: Plan,
  optimizer: optax.GradientTransformation,
  prepare: Prepare = prepare_joint,
  loss: Loss = loss_joint,
  layout: Any = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """step(state, frozen, rows, hard) -> (state, metrics); the state is donated.

  A step whose loss or gradient is not finite changes nothing but the counters.
  (That is known before the first update: to wait for the updates would keep
  all of them in memory.)

  Args:
    plan: of the run.
    optimizer: of the parameters.
    prepare: what the loss needs of a batch.
    loss: of a part of the batch.
    layout: shardings of the state, in and out; None: as XLA likes.
  """

  @functools.partial(
    jax.jit,
    donate_argnums=0,
    out_shardings=(layout, None),
    compiler_options=xla.TRAINING,
  )
  def step(state: TrainState, frozen: Params, rows: Rows, hard: Array):
    per_row, shared = prepare(plan, plan.key(state.step), rows, hard)
    grads, metrics = _gradients(
      plan, loss, state.params, frozen, per_row, shared
    )
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    keep = lambda new, old: jax.tree.map(
      lambda a, b: jnp.where(finite, a, b), new, old
    )
    bad = (~finite).astype(jnp.int32)
    state = TrainState(
      step=state.step + 1,
      params=keep(params, state.params),
      opt_state=keep(opt_state, state.opt_state),
      skipped=state.skipped + bad,
      consecutive_bad=(state.consecutive_bad + bad) * bad,
    )
    counters = {"skipped": state.skipped, "bad_run": state.consecutive_bad}
    return state, metrics | counters | {"grad_norm": norm}

  return step


def _gradients(plan, loss, params, frozen, per_row, shared):
  """Gradient and sums of all rows, computed in `accumulate` microbatches."""
  value = jax.value_and_grad(
    lambda p, part: loss(plan, p, frozen, (part, shared)), has_aux=True
  )

  def one(part):
    (total, sums), grads = value(params, part)
    grads = constrain(plan.stack.mesh, grads)
    return grads, sums | {"loss": total}

  microbatches = plan.accumulate
  if microbatches == 1:
    return one(per_row)
  # Strided, so that a microbatch takes rows of every device.
  cut = lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)
  parts = jax.tree.map(cut, per_row)
  shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts))
  start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  add = lambda total, part: (jax.tree.map(jnp.add, total, one(part)), None)
  return lax.scan(add, start, parts)[0]


def pick_block(lengths: tuple[int, ...], seed: int, step: int) -> int:
  """The block length of a step, the same on every process and after a restart."""
  rng = np.random.default_rng((seed, step))
  return int(lengths[rng.integers(len(lengths))])


def level_means(
  losses: Float[np.ndarray, "levels"], counts: Float[np.ndarray, "levels"]
) -> dict[str, float]:
  """Mean cross entropy of the masks per noise level, levels without any left out."""
  size = len(losses)
  return {
    f"diffusion/t_{i / size:.2f}_{(i + 1) / size:.2f}": float(a / n)
    for i, (a, n) in enumerate(zip(losses, counts, strict=True))
    if n > 0
  }
