"""Flags of the converters, and how they end: 0, or 2 with one line."""

import functools
import logging
import sys
import traceback
from collections.abc import Callable

from absl import app, flags

from checkpoints_convert import convert
from nemodiff_jax import command_line
from nemodiff_jax.errors import UserError
from nemodiff_jax.signals import run as run_process

_GRACE = 60.0  # Seconds to remove a folder that is not whole.

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
DEBUG = flags.DEFINE_bool("debug", False, "Show tracebacks of user errors.")


@functools.cache
def define_merge_lora() -> flags.FlagHolder[str | None]:
  """Defines --merge_lora, for the commands that can merge."""
  return flags.DEFINE_string(
    "merge_lora",
    None,
    "PEFT folder to add to the base weights; 'own': the source's"
    " linear_spec_lora.",
  )


def convert_checkpoint(
  layout: convert.Layout,
  merge_lora: str | None,
  shard_size: int | None = None,
  scheme: str = "none",
) -> int:
  """Converts --source to --target; returns the exit code."""
  convert.convert(
    SOURCE.value,
    TARGET.value,
    layout,
    dtype=DTYPE.value,
    shard_size=shard_size,
    scheme=scheme,
    merge_lora=merge_lora,
    overwrite=OVERWRITE.value,
    dry_run=DRY_RUN.value,
  )
  return 0


def run(main: Callable[[], int]) -> None:
  """Parses flags, runs `main` and leaves the process.

  Exit codes: 2 for a UserError and for a flag that does not parse, 130 for
  Ctrl-C, 143 for SIGTERM.
  """

  def guarded(rest: list[str]) -> int:
    # Which backends JAX does not find is no news here.
    logging.getLogger("jax").setLevel(logging.WARNING)
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

  def body() -> int:
    parse = functools.partial(command_line.parse, main=main)
    app.run(guarded, flags_parser=parse)
    return 0

  run_process(body, grace=_GRACE)
