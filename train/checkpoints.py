"""Checkpoints of a run: state and streams of data, asynchronous and atomic."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as keeping

from nemodiff_jax.errors import UserError
from train.step import TrainState


class _StreamsHandler(ocp.CheckpointHandler):
  """A JSON file per stream, each written by the process that reads it."""

  def save(self, directory: Any, args: "_Streams") -> None:
    for name, state in args.states.items():
      (directory / f"{name}.json").write_text(json.dumps(state))

  def restore(self, directory: Any, args: Any = None) -> None:
    raise NotImplementedError("see Checkpoints.restore_streams")


@ocp.args.register_with_handler(
  _StreamsHandler, for_save=True, for_restore=True
)
@dataclasses.dataclass
class _Streams(ocp.args.CheckpointArgs):
  states: dict[int, Any]


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
    streams: dict[int, Any],
    metrics: dict[str, float],
  ) -> None:
    """Begins to save; waits for the save before it.

    Raises:
      UserError: that save, or the start of this one, failed; the last good
        checkpoint is named.
    """
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(state), data=_Streams(streams)
    )
    with self._failures():
      self._manager.save(step, args=args, metrics=self._best and metrics)

  def wait(self) -> None:
    """Waits until what is being saved is complete.

    Raises:
      UserError: it failed.
    """
    with self._failures():
      self._manager.wait_until_finished()
      self._manager.check_for_errors()

  def restore(self, state: TrainState) -> TrainState:
    """The newest checkpoint's state.

    Arrays are read one after another: beside the state, little more than the
    largest of them is in memory.

    Args:
      state: shapes, with the shardings that the arrays are to have.

    Raises:
      UserError: the checkpoint is damaged, or that of another model.
    """
    sizes = [x.size * x.dtype.itemsize for x in jax.tree.leaves(state)]
    most = max(*sizes, sum(sizes) // 50) + 1
    gigabytes: Any = most / 1e9
    handler = ocp.StandardCheckpointHandler(restore_concurrent_gb=gigabytes)
    with self._damage(), ocp.Checkpointer(handler) as reader:
      return reader.restore(
        Path(self.name()) / "state", args=ocp.args.StandardRestore(state)
      )

  def restore_streams(self, names: range) -> dict[int, Any]:
    """Where some of the streams were, in the newest checkpoint.

    Raises:
      UserError: they are not there.
    """
    folder = Path(self.name()) / "data"
    with self._damage():
      return {i: json.loads((folder / f"{i}.json").read_text()) for i in names}

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

  @contextlib.contextmanager
  def _failures(self) -> Iterator[None]:
    """Failures of a save become errors that say what is left."""
    try:
      yield
    except Exception as e:
      what = f"the checkpoint could not be saved ({_first_line(e)})"
      raise self.failure(what) from e

  @contextlib.contextmanager
  def _damage(self) -> Iterator[None]:
    """What a damaged or foreign checkpoint raises becomes an error."""
    try:
      yield
    except Exception as e:  # Orbax raises many kinds.
      older = [s for s in self._manager.all_steps() if s != self.latest()]
      rest = (
        f"to go on from step {max(older)}, move this folder away"
        if older
        else "there is no older one"
      )
      raise UserError(
        f"{self.name()}: the checkpoint is damaged, or does not fit this run"
        f" ({_first_line(e)}); {rest}."
      ) from e


def _first_line(e: Any) -> str:
  return str(e).strip().split("\n")[0][:300]
