"""A run, from its configuration to its last checkpoint."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import tqdm
from jax.experimental import multihost_utils

from nemodiff_jax.errors import UserError
from nemodiff_jax.nn.model import Params
from train import data, drafter, evaluate, mesh, settings, watch
from train.checkpoints import Checkpoints, export
from train.optimizer import make_optimizer, schedule
from train.start import Start, open_start
from train.step import (
  TrainState,
  init_state,
  level_means,
  loss_joint,
  make_step,
  pick_block,
  prepare_joint,
)


@dataclasses.dataclass(frozen=True)
class Run:
  """What stays the same during a run.

  Attributes:
    config: the configuration.
    start: the model it began from.
    mesh: of all devices.
    optimizer: of the trained parameters.
    hard: [V] the hard tokens.
  """

  config: ml_collections.ConfigDict
  start: Start
  mesh: jax.sharding.Mesh
  optimizer: optax.GradientTransformation
  hard: jax.Array

  @property
  def drafts(self) -> bool:
    """Whether the drafter is what is trained."""
    return self.config.objective == "drafter"

  def make_step(self, block: int) -> Callable[..., Any]:
    """The step for a block length."""
    plan = settings.make_plan(self.config, self.start.config, block)
    if self.drafts:
      loss = drafter.make_loss(settings.drafter_loss(self.config))
      return make_step(plan, self.optimizer, drafter.prepare_drafter, loss)
    return make_step(plan, self.optimizer, prepare_joint, loss_joint)


def train(
  config: ml_collections.ConfigDict,
  workdir: Path,
  init_from: str | None = None,
  export_to: Path | None = None,
) -> TrainState:
  """Trains, or goes on training, to config.steps.

  Args:
    config: of the run; `train/configs` names every key.
    workdir: of the run; what is there is gone on with.
    init_from: checkpoint to start from; None: a new small model.
    export_to: folder for the result in the released layout.

  Raises:
    UserError: bad configuration, data or files; too many bad steps in a row;
      a disk that is full. Once a run has begun, its last good checkpoint is
      named.
  """
  settings.check(config)
  grid = mesh.make_mesh([config.mesh[axis] for axis in mesh.AXES])
  settings.check_batch(config, grid)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise UserError(f"{workdir}: could not be made ({e}).") from e
  watch.check_run(workdir, config, init_from)
  start = open_start(config, init_from, workdir)
  source = data.open_source(config.data, start.config, config.seed)
  shards = data.local_shards(config.data.shards)
  batches = iter(data.make_dataset(config, start, source, shards))
  watch.write_run(workdir, config, init_from)
  run, state, frozen = _begin(config, start, grid)
  with contextlib.closing(Checkpoints(workdir, config.checkpoint)) as saved:
    if saved.latest() is not None:
      state = saved.restore(state, batches)
      watch.say(f"going on from {saved.name()}")
    try:
      with contextlib.closing(watch.Writer(workdir)) as writer:
        state = _steps(run, state, frozen, batches, source, saved, writer)
    except OSError as e:
      raise saved.failure(f"a file could not be used ({e})") from e
    if export_to is not None:
      both: Any = (frozen, state.params) if run.drafts else (state.params, None)
      base, lora = _whole(both)
      if jax.process_index() == 0:
        export(export_to, start, base, lora, config.drafter.alpha)
    return state


def _begin(config, start: Start, grid) -> tuple[Run, TrainState, Params]:
  """The run, its state at step 0, and the parameters that are not trained."""
  key = jax.random.key(config.seed)
  base = mesh.place(grid, start.params(config.seed))
  trained, frozen = base, {}
  if config.objective == "drafter":
    rank = config.drafter.rank
    trained, frozen = drafter.init_lora(start.config, rank, key), base
  optimizer = make_optimizer(config.optimizer, config.steps, trained)
  shapes = jax.eval_shape(functools.partial(init_state, optimizer), trained)
  make = functools.partial(init_state, optimizer)
  state = jax.jit(make, out_shardings=mesh.shardings(grid, shapes))(trained)
  hard = jnp.asarray(start.hard_tokens(config.hard == "digits"))
  return Run(config, start, grid, optimizer, hard), state, frozen


def _steps(run, state, frozen, batches, source, checkpoints, writer):
  """Steps, and between them what watches over them."""
  config, rate = run.config, schedule(run.config.optimizer, run.config.steps)
  questions = evaluate.load_questions(config.eval) if config.eval.every else []
  first = int(state.step)
  compiled = functools.cache(run.make_step)
  saved, since, waiting = first, time.perf_counter(), []
  bar = tqdm.tqdm(
    total=config.steps,
    initial=first,
    unit="step",
    mininterval=1,
    disable=jax.process_index() > 0,
  )
  for step in range(first, config.steps):
    block = pick_block(tuple(config.block_lengths), config.seed, step)
    rows = data.place_rows(next(batches), run.mesh, config.batch_size)
    state, metrics = compiled(block)(state, frozen, rows, run.hard)
    waiting.append(metrics)
    done, found = step + 1, {}
    bar.update()
    if done % config.log_every == 0 or done == config.steps:
      jax.block_until_ready(metrics)
      seconds = time.perf_counter() - since
      report = summarise(run, waiting, seconds)
      report["lr"] = float(jnp.asarray(rate(step - int(report["skipped"]))))
      report["skipped_lines"] = len(source.skipped)
      writer.write(done, report)
      bar.set_postfix(
        loss=f"{report['loss']:.3f}", tok_s=f"{report['tokens_per_second']:.0f}"
      )
      _stop_if_bad(config, report, checkpoints)
      waiting, since = [], time.perf_counter()
    if questions and (done % config.eval.every == 0 or done == config.steps):
      found, sample = _evaluate(run, state, frozen, questions)
      writer.write(done, found, sample)
      since = time.perf_counter()
    due = done % config.checkpoint.every == 0 or done == config.steps
    if due or (found and config.checkpoint.best):
      checkpoints.save(done, state, batches, found)
      saved = done
  bar.close()
  if saved != first:
    checkpoints.wait()
  return state


def summarise(
  run: Run, waiting: list[dict[str, Any]], seconds: float
) -> dict[str, float]:
  """Means over some steps, speed and memory."""
  many = jax.device_get(waiting)
  counters = {k: float(max(m[k] for m in many)) for k in ("skipped", "bad_run")}
  finite = lambda m: np.isfinite([m["loss"], m["grad_norm"]]).all()
  fine = [m for m in many if finite(m)] or many[-1:]
  means = {k: np.mean([m[k] for m in fine], 0) for k in fine[0]}
  levels = [means.pop(k) for k in ("level_loss", "level_count") if k in means]
  report = {k: float(x) for k, x in means.items()} | counters
  report |= level_means(*levels) if levels else {}
  config = run.config
  rows = config.batch_size * len(waiting)
  report["tokens_per_second"] = rows * config.length / seconds
  report["memory_gib"] = watch.memory_gib()
  peak = watch.peak_operations()
  if peak is not None and not run.drafts:
    noisy = config.noisy_length if "diffusion" in report else 0
    work = rows * watch.model_operations(run.start.config, config.length, noisy)
    report["mfu"] = work / seconds / (peak * jax.device_count())
  return report


def _stop_if_bad(config, report, checkpoints: Checkpoints) -> None:
  bad = int(report["bad_run"])
  if bad >= config.max_bad_steps:
    checkpoints.wait()
    raise UserError(
      f"{bad} steps in a row gave a loss or gradient that is not finite; the"
      f" last good checkpoint is {checkpoints.name()}. A lower"
      " --config.optimizer.lr in a new workdir may help."
    )


def _evaluate(run: Run, state, frozen, questions):
  """Decodes the questions; each of several processes decodes all of them."""
  config = run.config
  both = (frozen, state.params) if run.drafts else (state.params, None)
  base, lora = _whole(both)
  scale = config.drafter.alpha / config.drafter.rank
  model = evaluate.decoding_model(run.start, base, lora, scale)
  found, sample = evaluate.evaluate(model, config.eval, questions)
  watch.say(", ".join(f"{k} {v:.3f}" for k, v in found.items()))
  return found, sample


def _whole(tree: Any) -> Any:
  """The tree; with several processes, all of it in the memory of each."""
  if jax.process_count() == 1:
    return tree
  return multihost_utils.process_allgather(tree, tiled=True)
