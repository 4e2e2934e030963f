"""Flags of the converters, and how they end: 0, or 2 with one line."""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from absl import app, flags

from checkpoints_convert import convert, folders, int8
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import open_checkpoint
from nemodiff_jax.io.lora import FOLDER as LORA_FOLDER
from nemodiff_jax.io.lora import read_peft

SOURCE = flags.DEFINE_string(
  "source",
  None,
  "Checkpoint to read: a Hugging Face or an Orbax folder.",
  required=True,
)
TARGET = flags.DEFINE_string(
  "target", None, "Folder to write, or to compare with.", required=True
)
DTYPE = flags.DEFINE_enum(
  "dtype",
  None,
  ("float32", "bfloat16"),
  "Of the weights. Default: that of the source, tensor by tensor.",
)
DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Print what would be written, with sizes, and stop."
)
OVERWRITE = flags.DEFINE_bool(
  "overwrite", False, "Replace a checkpoint that is at the target."
)
MERGE_LORA = flags.DEFINE_string(
  "merge_lora",
  None,
  "PEFT folder to add to the base weights; 'own': the source's"
  " linear_spec_lora.",
)
DEBUG = flags.DEFINE_bool("debug", False, "Show tracebacks of user errors.")


def convert_checkpoint(
  layout: convert.Layout, shard_size: int | None = None, scheme: str = "none"
) -> int:
  """Converts --source to --target; returns the exit code."""
  opened = open_checkpoint(SOURCE.value)
  lora = MERGE_LORA.value
  if lora is not None:
    folder = opened.folder / LORA_FOLDER if lora == "own" else Path(lora)
    peft = read_peft(folder, opened.config)
  else:
    peft = None
  items = convert.plan(opened, DTYPE.value, peft)
  if shard_size is not None:
    items = convert.reshard(items, shard_size)
  quantize = opened.scheme != scheme == "int8"
  if quantize:
    items = int8.quantized(items)

  def beside(folder: Path) -> None:
    folders.copy_side_files(opened.folder, folder, lora=peft is None)
    if quantize:
      int8.mark(folder)

  return build(opened.folder, items, layout, beside)


def build(
  source: Path,
  items: list[convert.Item],
  layout: convert.Layout,
  beside: Callable[[Path], None],
) -> int:
  """Writes --target, or prints the plan; returns the exit code."""
  target = Path(TARGET.value)
  folders.check_apart(source, target)
  print(f"{source} -> {target}\n{convert.summary(items, layout)}")
  if DRY_RUN.value:
    return 0
  convert.build(target, items, layout, beside, OVERWRITE.value)
  return 0


def run(main: Callable[[], int]) -> None:
  """Parses flags, runs `main` and exits: 2 for a UserError, 130 for Ctrl-C."""

  def guarded(rest: list[str]) -> int:
    try:
      if len(rest) > 1:
        raise UserError(f"expected flags only, got {rest[1:]}.")
      return main()
    except UserError as e:
      if DEBUG.value:
        traceback.print_exc()
      print(f"error: {e}", file=sys.stderr)
      return 2
    except KeyboardInterrupt:
      print("interrupted", file=sys.stderr)
      return 130

  app.run(guarded)
