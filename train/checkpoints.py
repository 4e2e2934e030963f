"""Checkpoints of a run: state and data iterator, asynchronous and atomic."""

from pathlib import Path
from typing import Any

import grain
import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as keeping

from checkpoints_convert.hf_folder import write_folder, write_lora
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import tensor_table
from nemodiff_jax.io.hf_config import to_hf
from nemodiff_jax.io.lora import FOLDER
from nemodiff_jax.nn.model import Params
from train.stack import unstack_layers
from train.start import Start
from train.step import TrainState
from train.watch import say


class Checkpoints:
  """The checkpoints of a workdir.

  A save goes on in the background, and only a complete one gets its name: a run
  that is killed leaves nothing that could be taken for a checkpoint.
  """

  def __init__(self, workdir: Path, c: ml_collections.ConfigDict):
    policies: list[Any] = [keeping.LatestN(c.keep)]
    self._best = None
    if c.best:
      self._best = lambda metrics: metrics.get(c.best, float("-inf"))
      policies.append(keeping.BestN(get_metric_fn=self._best, n=1))
    self._folder = workdir.absolute() / "checkpoints"
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=keeping.AnyPreservationPolicy(policies),
        best_fn=self._best,  # With it, metrics are saved too.
        cleanup_tmp_directories=True,
      ),
    )

  def latest(self) -> int | None:
    """The step of the newest complete checkpoint."""
    return self._manager.latest_step()

  def save(
    self,
    step: int,
    state: TrainState,
    data: grain.DatasetIterator,
    metrics: dict[str, float],
  ) -> None:
    """Begins to save; waits for the save before it.

    Raises:
      UserError: that save, or the start of this one, failed; the last good
        checkpoint is named.
    """
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(state),
      data=grain.checkpoint.CheckpointSave(data),
    )
    with _Told(self):
      self._manager.save(step, args=args, metrics=self._best and metrics)

  def wait(self) -> None:
    """Waits until what is being saved is complete.

    Raises:
      UserError: it failed.
    """
    with _Told(self):
      self._manager.wait_until_finished()
      self._manager.check_for_errors()

  def restore(
    self, state: TrainState, data: grain.DatasetIterator | None
  ) -> TrainState:
    """The newest checkpoint's state, placed as `state` is; sets `data` back."""
    args: dict[str, Any] = {"state": ocp.args.StandardRestore(state)}
    if data is not None:
      args["data"] = grain.checkpoint.CheckpointRestore(data)
    try:
      found: Any = self._manager.restore(
        self.latest(), args=ocp.args.Composite(**args)
      )
    except (ValueError, KeyError, OSError) as e:
      raise UserError(
        f"{self.name()}: the checkpoint does not fit this run ({e})."
      ) from e
    return found["state"]

  def name(self) -> str:
    """The newest complete checkpoint, for messages."""
    steps = self.latest()
    return "none" if steps is None else str(self._folder / str(steps))

  def failure(self, what: str) -> UserError:
    """An error that says what is left of the run."""
    self._manager.reload()
    return UserError(
      f"{what}; is the disk full? The last good checkpoint is {self.name()}; the"
      " same command goes on from there."
    )

  def close(self) -> None:
    """Waits, and ends the background threads."""
    self._manager.close()


class _Told:
  """Says what is left when a save fails."""

  def __init__(self, checkpoints: Checkpoints):
    self._checkpoints = checkpoints

  def __enter__(self) -> None:
    pass

  def __exit__(self, kind, e, trace) -> None:
    if kind is None or not issubclass(kind, Exception):
      return
    what = f"the checkpoint could not be saved ({_first_line(e)})"
    raise self._checkpoints.failure(what) from e


def export(
  folder: Path, start: Start, base: Params, lora: Params | None, alpha: float
) -> None:
  """Writes the released layout: weights, tokenizer, and the drafter's LoRA.

  Args:
    folder: created if absent.
    start: what the run started from.
    base: parameters of the model, layers stacked.
    lora: the trained LoRA, None where there is none.
    alpha: of the LoRA.

  Raises:
    UserError: the folder cannot be written.
  """
  config = start.config
  params = unstack_layers(jax.device_get(base), config.num_layers)
  try:
    start.copy_side_files(folder)
    dtype = jax.numpy.bfloat16
    table = tensor_table(config)
    write_folder(folder, to_hf(config), table, params, dtype=dtype)
    if lora is not None:
      a, b = (np.asarray(lora["lora"][x]).swapaxes(1, 2) for x in "ab")
      layers = [*zip(a, b, strict=True)]
      write_lora(folder / FOLDER, layers, alpha)
  except OSError as e:
    raise UserError(f"{folder}: could not be written ({e}).") from e
  say(f"exported to {folder}")


def _first_line(e: Any) -> str:
  return str(e).strip().split("\n")[0][:300]
