"""A run, from its configuration to its last checkpoint."""

import contextlib
import dataclasses
import functools
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
import tqdm

from checkpoints_convert.folders import check_target
from nemodiff_jax.errors import UserError
from nemodiff_jax.nn.model import Params
from train import data, drafter, evaluate, mesh, record, report, settings, watch
from train.checkpoints import Checkpoints
from train.export import export
from train.optimizer import make_optimizer, schedule
from train.signals import Stop, Stopped
from train.start import Start, gather, open_start
from train.step import (
  TrainState,
  init_state,
  loss_joint,
  make_step,
  pick_block,
  prepare_joint,
)
from train.validation import Validation


@dataclasses.dataclass(frozen=True)
class Run:
  """What stays the same during a run.

  Attributes:
    config: the configuration.
    start: the model it began from.
    mesh: of all devices.
    optimizer: of the trained parameters.
    hard: [V] the hard tokens.
    frozen: parameters that are not trained.
    layout: sharding of every array of the state.
  """

  config: ml_collections.ConfigDict
  start: Start
  mesh: jax.sharding.Mesh
  optimizer: optax.GradientTransformation
  hard: jax.Array
  frozen: Params
  layout: Any

  @property
  def drafts(self) -> bool:
    """Whether the drafter is what is trained."""
    return self.config.objective == "drafter"

  @property
  def objective(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What prepares a batch, and the loss of a part of it."""
    if self.drafts:
      loss = drafter.make_loss(settings.drafter_loss(self.config))
      return drafter.prepare_drafter, loss
    return prepare_joint, loss_joint

  def make_step(self, block: int) -> Callable[..., Any]:
    """The step for a block length."""
    model = self.start.config
    plan = settings.make_plan(self.config, model, block, self.mesh)
    return make_step(plan, self.optimizer, *self.objective, self.layout)


def train(
  config: ml_collections.ConfigDict,
  workdir: Path,
  init_from: str | None = None,
  export_to: Path | None = None,
) -> TrainState:
  """Trains, or goes on training, to config.steps.

  Args:
    config: of the run; `train/configs/base.py` names every key.
    workdir: of the run; a run that is there already goes on.
    init_from: checkpoint to start from; None: a new small model.
    export_to: folder for the result in the released layout.

  Raises:
    UserError: bad configuration, data or files; too many consecutive bad
      steps; a disk that is full. Once a run has begun, its last good
      checkpoint is named.
    Stopped: by SIGTERM or Ctrl-C, after a checkpoint.
  """
  config = config.copy_and_resolve_references()
  settings.check(config)
  grid = mesh.make_mesh([config.mesh[axis] for axis in mesh.AXES])
  workdir = workdir.expanduser()
  if export_to is not None:
    export_to = export_to.expanduser()
    check_target(export_to, overwrite=True)
  found = record.read_run(workdir)
  config.data.shards = record.check_run(workdir, found, config, init_from)
  settings.check_batch(config, grid)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise UserError(f"{workdir}: could not be made ({e}).") from e
  start = open_start(config, init_from, workdir)
  c = config.data
  source = data.open_source(c.source, start.config, config.seed, c.on_error)
  streams = data.local_streams(c.shards)
  batches = data.make_batches(config, start, source, streams)
  validation = Validation(config, start) if config.validation.source else None
  every = config.eval.every
  questions = evaluate.load_questions(config.eval) if every else []
  with contextlib.closing(Checkpoints(workdir, config.checkpoint)) as saved:
    first = saved.latest() or 0
    if first > config.steps:
      raise UserError(
        f"{saved.name()} is beyond config.steps {config.steps}; give more"
        " steps, or move later checkpoints away."
      )
    run, state = _begin(config, start, grid, saved)
    if first:
      batches.restore(saved.restore_streams(streams))
      watch.say(f"going on from {saved.name()}")
    record.write_run(workdir, found, config, init_from, first)
    try:
      with contextlib.closing(watch.Writer(workdir, first)) as writer:
        steps = _Steps(
          run, batches, source, validation, questions, saved, writer
        )
        state = steps.go(state)
    except OSError as e:
      raise saved.failure(f"a file could not be used ({e})") from e
  if export_to is not None:
    base, lora = _gather(run, state, run.frozen)
    if jax.process_index() == 0:
      export(export_to, start, base, lora, config.drafter.alpha)
  return state


def _begin(config, start: Start, grid, saved: Checkpoints):
  """The run and its state: at step 0, or from the newest checkpoint.

  The model that the run began from is read only where it is needed.
  """
  key, frozen = jax.random.key(config.seed), {}
  shapes: Any = start.shapes()
  if config.objective == "drafter":
    frozen = mesh.place(grid, start.params(config.seed, config.dtype))
    rank = config.drafter.rank
    lora = functools.partial(drafter.init_lora, start.config, rank, key)
    shapes = jax.eval_shape(lora)
  optimizer = make_optimizer(config.optimizer, config.steps, shapes)
  make = functools.partial(init_state, optimizer)
  states = jax.eval_shape(make, shapes)
  placed = mesh.shardings(grid, states)
  if saved.latest() is not None:
    shaped = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    state = saved.restore(jax.tree.map(shaped, states, placed))
  elif config.objective == "drafter":
    state = jax.jit(lambda: make(lora()), out_shardings=placed)()
  else:
    params = mesh.place(grid, start.params(config.seed))
    state = jax.jit(make, out_shardings=placed)(params)
  hard = jnp.asarray(start.hard_tokens(config.hard == "digits"))
  return Run(config, start, grid, optimizer, hard, frozen, placed), state


@dataclasses.dataclass
class _Steps:
  """The steps of a run, and between them what watches over them."""

  run: Run
  batches: data.Batches
  source: data.Source
  validation: Validation | None
  questions: list[evaluate.Question]
  checkpoints: Checkpoints
  writer: watch.Writer

  def go(self, state: TrainState) -> TrainState:
    """From the state's step to the last one."""
    config, first = self.run.config, int(state.step)
    compiled = functools.cache(self.run.make_step)
    window, saved = report.Window(), first
    with self._bar(first) as bar, Stop() as stop:
      for step in range(first, config.steps):
        block = pick_block(tuple(config.block_lengths), config.seed, step)
        batch = next(self.batches)
        filled = batch.pop("filled").mean() / config.length
        rows = data.place_rows(batch, self.run.mesh, config.batch_size)
        state, metrics = compiled(block)(
          state, self.run.frozen, rows, self.run.hard
        )
        window.add(metrics, float(filled))
        done, stopping = step + 1, stop.asked(step + 1)
        bar.update()
        last = stopping or done == config.steps
        if done % config.log_every == 0 or last:
          self._log(done, window, bar)
          window = report.Window()
        seen = time.perf_counter()
        found = {} if stopping else self._watch(done, state)
        window.leave_out(time.perf_counter() - seen)
        due = done % config.checkpoint.every == 0 or last
        if due or (found and config.checkpoint.best):
          self.checkpoints.save(done, state, self.batches.states(), found)
          saved = done
        if stopping:
          break
      if saved != first:
        self.checkpoints.wait()
    if stop.number is not None:
      raise Stopped(
        f"stopped by {signal.Signals(stop.number).name} after step {saved}; the"
        f" same command goes on from {self.checkpoints.name()}",
        stop.number,
      )
    return state

  def _bar(self, first: int) -> tqdm.tqdm:
    return tqdm.tqdm(
      total=self.run.config.steps,
      initial=first,
      unit="step",
      mininterval=1,
      disable=jax.process_index() > 0,
    )

  def _log(self, done: int, window: report.Window, bar: tqdm.tqdm) -> None:
    """Writes what the window saw; ends a run whose steps are all bad."""
    run, config = self.run, self.run.config
    found = window.summary(run.start.config, config, run.drafts)
    rate = schedule(config.optimizer, config.steps)
    found["lr"] = float(jnp.asarray(rate(done - 1 - int(found["skipped"]))))
    found["skipped_lines"] = len(self.source.skipped)
    self.writer.write(done, found)
    speed = f"{found['tokens_per_second']:.0f}"
    bar.set_postfix(loss=f"{found['loss']:.3f}", tok_s=speed)
    if (bad := int(found["bad_run"])) >= config.max_bad_steps:
      self.checkpoints.wait()
      raise UserError(
        f"{bad} steps in a row gave a loss or gradient that is not finite; the"
        f" last good checkpoint is {self.checkpoints.name()}. A lower"
        " --config.optimizer.lr in a new workdir may help."
      )

  def _watch(self, done: int, state: TrainState) -> dict[str, float]:
    """Held-out losses and decoded questions, where they are due."""
    config, last = self.run.config, done == self.run.config.steps
    if self.validation and (done % config.validation.every == 0 or last):
      losses = self.validation.losses(self.run, state.params)
      self.writer.write(done, losses)
    every = config.eval.every
    if not every or not (done % every == 0 or last):
      return {}
    found, sample = _evaluate(self.run, state, self.run.frozen, self.questions)
    self.writer.write(done, found, sample)
    return found


def _gather(run: Run, state: TrainState, frozen: Params) -> Any:
  """(the model, the drafter's LoRA if that is trained), whole."""
  both: Any = (frozen, state.params) if run.drafts else (state.params, None)
  return gather(both)


def _evaluate(run: Run, state: TrainState, frozen: Params, questions):
  """Decodes the questions; each of several processes decodes all of them."""
  config = run.config
  base, lora = _gather(run, state, frozen)
  scale = config.drafter.alpha / config.drafter.rank
  model = evaluate.decoding_model(run.start, base, lora, scale)
  found, sample = evaluate.evaluate(model, config.eval, questions)
  watch.say(", ".join(f"{k} {v:.3f}" for k, v in found.items()))
  return found, sample
