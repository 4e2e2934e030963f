"""One optimiser step: corrupt, count, accumulate gradients, update."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from nemodiff_jax.nn import xla
from nemodiff_jax.nn.model import Params
from train.corruption import Canvas, Corruption, Noisy, Rows, corrupt
from train.losses import Counts, Joint, Targets, align, count, joint_loss
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


class Batch(Protocol):
  """What a loss needs of a batch: fields with rows in front, and counts.

  Attributes:
    counts: what the sums over rows are divided by, of the whole batch.
  """

  counts: Any


@struct.dataclass
class JointBatch:
  """A batch of joint training.

  Attributes:
    rows: the texts.
    noisy: their blocks; None: the causal branch alone is trained.
    targets: of the clean half and of the noisy half.
    counts: of the whole batch.
  """

  rows: Rows
  noisy: Noisy | None
  targets: tuple[Targets, Targets | None]
  counts: Counts


Prepare = Callable[[Plan, Array, Rows, Array], Batch]
Loss = Callable[[Plan, Params, Params, Any], tuple[Array, Metrics]]


def init_state(
  optimizer: optax.GradientTransformation, params: Params
) -> TrainState:
  """A state at step 0."""
  zero = lambda: jnp.zeros((), jnp.int32)
  return TrainState(zero(), params, optimizer.init(params), zero(), zero())


def prepare_joint(
  plan: Plan, key: Array, rows: Rows, hard: Bool[Array, "V"]
) -> JointBatch:
  """Corrupts the rows, and aligns what is predicted."""
  noisy = None
  if plan.joint.diffusion_weight:
    noisy = corrupt(key, rows, plan.recipe, plan.canvas, hard)
  targets = align(rows, noisy, hard, plan.joint.hard_weight)
  return JointBatch(rows, noisy, targets, count(plan.joint, targets, noisy))


def loss_joint(
  plan: Plan, params: Params, frozen: Params, part: JointBatch
) -> tuple[Array, Metrics]:
  """The joint loss of some of the rows."""
  return joint_loss(
    plan.stack,
    plan.joint,
    params,
    part.rows,
    part.noisy,
    part.targets,
    part.counts,
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
    batch = prepare(plan, plan.key(state.step), rows, hard)
    grads, metrics = _gradients(plan, loss, state.params, frozen, batch)
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


def _gradients(plan, loss, params, frozen, batch):
  """Gradient and sums of all rows, computed in `accumulate` microbatches."""
  per_row = dataclasses.replace(batch, counts=None)
  whole = lambda part: dataclasses.replace(part, counts=batch.counts)
  value = jax.value_and_grad(
    lambda p, part: loss(plan, p, frozen, whole(part)), has_aux=True
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
