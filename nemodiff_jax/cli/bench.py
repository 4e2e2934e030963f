r"""Speed of a checkpoint, or of a random model of a released size, mode by mode.

    python -m nemodiff_jax.cli.bench --checkpoint=DIR --batches=1,8
    python -m nemodiff_jax.cli.bench --shape=8b --modes=ar,linear_spec --json=F
    python -m nemodiff_jax.cli.bench --checkpoint=DIR --modes=ar --peer=transformers

A row is a mode, a batch and a context: milliseconds of a pass and the floor that
this device sets (bytes over measured bandwidth, operations over measured rate),
tokens per second, tokens per forward, memory. Random weights accept few drafts,
so tokens per forward and per second of --shape say little of a trained model.
"""

import os
import platform
import sys
import time
from pathlib import Path

import jax
from absl import flags

from nemodiff_jax.cli import flags as shared
from nemodiff_jax.cli import main as process
from nemodiff_jax.cli import sweep_flags as sweep
from nemodiff_jax.errors import UserError
from nemodiff_jax.evaluate import bench, measure
from nemodiff_jax.evaluate.peer import Peer
from nemodiff_jax.evaluate.record import write_json
from nemodiff_jax.evaluate.results import text_table
from nemodiff_jax.evaluate.sweep import label
from nemodiff_jax.evaluate.sweep import sweep as settings_of
from pallas_kernels.chips import CHIPS

_SHAPE = flags.DEFINE_enum(
  "shape", None, ["tiny", "3b", "8b", "14b"],
  "A model of this size with random weights, in place of --checkpoint.",
)  # fmt: skip
_BATCHES = flags.DEFINE_list("batches", ["1"], "Rows decoded together.")
_CONTEXTS = flags.DEFINE_list("contexts", ["128"], "Tokens of each prompt.")
_NEW = flags.DEFINE_integer("new_tokens", 64, "Tokens generated per row.")
_PEER = flags.DEFINE_enum(
  "peer", None, ["transformers"],
  "Beside ar: transformers with the same weights (CPU, float32; a released-"
  "layout folder). PEER_PYTHON names a Python that has torch.",
)  # fmt: skip
_PROJECT = flags.DEFINE_enum(
  "project", None, sorted(CHIPS),
  "Also scale the times to this chip by data sheets: a projection.",
)  # fmt: skip
_JSON = flags.DEFINE_string("json", None, "File to write the rows to.")
flags.adopt_module_key_flags(sweep)
for _flag in ("checkpoint", "lora", "dtype", "quantize", "mesh", "attention",
              "debug"):  # fmt: skip
  flags.declare_key_flag(_flag)


def main() -> int:
  """Runs the command; returns the exit code."""
  model, folder = _model()
  settings, skipped = settings_of(
    model.config, sweep.MODES.value, (), (),
    sweep.numbers(sweep.BLOCK_LENGTHS, int),
  )  # fmt: skip
  for s in skipped:
    print(f"skipped {s.setting}: {s.why}", file=sys.stderr)
  where = (
    f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores {platform.machine()},"
    f" Python {platform.python_version()}, {model.module.dtype.name}"
  )
  print(where)
  on_cpu = jax.default_backend() == "cpu"
  floor = measure.floor(toy=on_cpu, dtype=model.module.dtype.name)
  peer = None if _PEER.value is None else Peer(str(folder))
  rows = []
  for context in sweep.numbers(_CONTEXTS, int):
    for batch in sweep.numbers(_BATCHES, int):
      for setting in settings:
        case = bench.Case(setting, batch, context, _NEW.value)
        row = _row(model, case, floor, peer if setting.mode == "ar" else None)
        rows += [row] if row is not None else []
  if peer is not None:
    peer.close()
  if not rows:
    raise UserError("nothing could be run.")
  print(text_table(bench.table(rows)))
  if bench.below_floor(rows):
    print("a pass below its floor: the weights stay in the processor's caches,"
          " and the floor counts them from memory.")  # fmt: skip
  if _PROJECT.value:
    print(f"projected: scaled to {CHIPS[_PROJECT.value].name} by data sheets,"
          " not measured there.")  # fmt: skip
  if _JSON.value:
    versions = {} if peer is None else peer.versions
    floors = {"bandwidth": floor.bandwidth, "flops": floor.flops}
    value = {"where": where, "floor": floors, "peer": versions, "rows": rows}
    write_json(Path(_JSON.value).expanduser(), value)
  return 0


def _model():
  """(model, its folder); the folder is None with --shape."""
  for flag in (_BATCHES, _CONTEXTS):
    if min(sweep.numbers(flag, int), default=0) < 1:
      raise UserError(f"--{flag.name} should be at least 1 each.")
  if _SHAPE.value is not None:
    if shared.CHECKPOINT.value is not None or _PEER.value is not None:
      raise UserError("--shape goes without --checkpoint and --peer.")
    shape = _SHAPE.value
    model = bench.random_model(shape, shared.DTYPE.value, shared.QUANTIZE.value)
    return model, None
  opened = shared.checkpoint()
  return shared.load(opened), opened.folder


def _row(model, case, floor, peer):
  try:
    row = bench.run(model, case, floor, peer)
  except UserError as e:
    print(f"skipped {label(case.setting)}, batch {case.batch}, context"
          f" {case.context}: {e}", file=sys.stderr)  # fmt: skip
    return None
  if _PROJECT.value:
    chip = CHIPS[_PROJECT.value]
    row["projected_ms"] = bench.project(row, model, case, floor, chip)
  return row


def console() -> None:
  """Entry point of the installed command."""
  process.console(main)


if __name__ == "__main__":
  console()
