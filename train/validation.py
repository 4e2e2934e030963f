"""Losses on held-out data: the same rows and the same noise every time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from nemodiff_jax.errors import UserError
from nemodiff_jax.nn.model import Params
from train import arithmetic, data, report, settings
from train.sources import HeldOut, family_shares
from train.start import Start

_COUNTS = ("supervised", "attended")  # Of training's speed.


class Validation:
  """Batches of config.validation.source, read once.

  They are corrupted as training's rows are, in blocks of the largest length.
  """

  def __init__(self, config: ml_collections.ConfigDict, start: Start):
    """Reads the batches.

    Raises:
      UserError: a file or a line of it that cannot be used.
    """
    c = config.copy_and_resolve_references()
    c.batch_size = config.batch_size // config.accumulate
    c.data.update({"shards": jax.process_count(), "shuffle": False})
    self._rows = c.batch_size
    self._losses: Callable[..., Any] | None = None
    try:
      source = _open(config, start)
      streams = data.local_streams(c.data.shards)
      batches = data.make_batches(c, start, source, streams)
      count = config.validation.batches
      self._batches = [next(batches) for _ in range(count)]
    except UserError as e:
      raise UserError(f"config.validation.source: {e}") from e

  def losses(self, run: Any, params: Params) -> dict[str, float]:
    """'validation/...': means over the batches.

    Args:
      run: the `loop.Run`.
      params: what is trained.
    """
    losses = self._losses = self._losses or _make_losses(run)
    found = []
    for i, batch in enumerate(self._batches):
      fields = {k: v for k, v in batch.items() if k != "filled"}
      rows = data.place_rows(fields, run.mesh, self._rows, i * self._rows)
      found.append(losses(params, run.frozen, rows, run.hard))
    mean = report.means(jax.device_get(found))
    return {f"validation/{k}": v for k, v in mean.items() if k not in _COUNTS}


def _open(config, start: Start) -> data.Source:
  name = config.validation.source
  if (shares := family_shares(name)) is None:
    seed, on_error = config.seed, config.data.on_error
    return data.open_source(name, start.config, seed, on_error)
  return HeldOut([f for f in shares if f in arithmetic.HELD_OUT])


def _make_losses(run: Any):
  """(params, frozen, rows, hard) -> metrics, without a gradient."""
  block = max(run.config.block_lengths)
  plan = settings.make_plan(run.config, run.start.config, block, run.mesh)
  prepare, loss = run.objective

  @jax.jit
  def losses(params, frozen, rows, hard):
    key = plan.key(jnp.int32(-1))  # No step of training has it.
    total, sums = loss(plan, params, frozen, prepare(plan, key, rows, hard))
    return sums | {"loss": total}

  return losses
