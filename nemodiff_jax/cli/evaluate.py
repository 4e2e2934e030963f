r"""Measures a checkpoint: accuracy and tokens per forward, in every mode.

    python -m nemodiff_jax.cli.evaluate --tasks=embedded --out=DIR
    python -m nemodiff_jax.cli.evaluate --checkpoint=DIR --tasks=gsm8k --chat \
        --modes=ar,diffusion --thresholds=0.8,0.9 --block_lengths=16,32 --out=DIR
    python -m nemodiff_jax.cli.evaluate --compare=DIR_A --compare=DIR_B

A task is `embedded` (held-out questions for the embedded checkpoint), `gsm8k`,
`humaneval`, `reasoning_gym:FAMILY`, `lm_eval:TASK`, or a .jsonl file of {"prompt"
| "messages", "answer" | "regex", "extract", "group", "id"}. DIR gets run.json,
questions.jsonl, samples.jsonl, results.json and report.html; a stopped run goes
on when the command is run again. See docs/evaluation.md.
"""

import sys
from pathlib import Path

from absl import flags

from nemodiff_jax.cli import flags as shared
from nemodiff_jax.cli import main as process
from nemodiff_jax.cli import sweep_flags as sweep
from nemodiff_jax.errors import UserError
from nemodiff_jax.evaluate import command, compare

_TASKS = flags.DEFINE_list("tasks", None, "Tasks, separated by commas.")
_OUT = flags.DEFINE_string("out", None, "Folder of the run.")
_THRESHOLDS = flags.DEFINE_list(
  "thresholds", [], "diffusion: thresholds to sweep. Default: 0.9."
)
_STEPS = flags.DEFINE_list(
  "steps", [], "diffusion: steps per block to sweep, without a threshold."
)
_LIMIT = flags.DEFINE_integer(
  "limit", None, "Questions per task; default: all."
)
_NUM_FEWSHOT = flags.DEFINE_integer(
  "num_fewshot", None, "Examples before each question (gsm8k, lm_eval)."
)
_TRACED = flags.DEFINE_integer(
  "traced", 20, "Questions decoded pass by pass too, for the figures; 0: none."
)
_UNSAFE_CODE = flags.DEFINE_bool(
  "unsafe_code", False, "Run a model's programs where nothing isolates them."
)
_INCLUDE_PATH = flags.DEFINE_string(
  "include_path", None, "Folder with more tasks for lm_eval."
)
_SPEED_OF_LIGHT = flags.DEFINE_bool(
  "speed_of_light",
  False,
  "diffusion: also the fewest passes that a perfect order of reveals needs, on"
  " the traced questions (slow).",
)
_COMPARE = flags.DEFINE_multi_string(
  "compare", [], "Twice: folders of two runs, to print how they differ."
)
flags.adopt_module_key_flags(sweep)
for _flag in (
  "checkpoint", "lora", "dtype", "quantize", "mesh", "attention", "batch_size",
  "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop",
  "generation_config", "chat", "enable_thinking", "debug",
):  # fmt: skip
  flags.declare_key_flag(_flag)
_UNUSED = (
  (shared.MODE, "--modes"),
  (shared.THRESHOLD, "--thresholds"),
  (shared.STEPS_PER_BLOCK, "--steps"),
  (shared.BLOCK_LENGTH, "--block_lengths"),
)


def main() -> int:
  """Runs the command; returns the exit code."""
  if _COMPARE.value:
    if len(_COMPARE.value) != 2:
      raise UserError(
        f"--compare is given twice, once per run; got {len(_COMPARE.value)}."
      )
    print(compare.compare(*(Path(p).expanduser() for p in _COMPARE.value)))
    return 0
  if not _TASKS.value or not _OUT.value:
    raise UserError("expected --tasks and --out (or --compare twice).")
  for flag, instead in _UNUSED:
    if flag.present:
      raise UserError(f"--{flag.name} is for one run; use {instead}.")
  for flag in (_LIMIT, _NUM_FEWSHOT, _TRACED):
    least = 1 if flag is _LIMIT else 0
    if flag.value is not None and flag.value < least:
      raise UserError(
        f"--{flag.name} should be at least {least}, got {flag.value}."
      )
  return command.evaluate(_request(), say)


def _request() -> command.Request:
  opened = shared.checkpoint()
  return command.Request(
    opened=opened,
    load=lambda: shared.load(opened),
    out=Path(_OUT.value or "").expanduser(),
    tasks=_TASKS.value or (),
    modes=sweep.MODES.value,
    thresholds=sweep.numbers(_THRESHOLDS, float),
    steps=sweep.numbers(_STEPS, int),
    block_lengths=sweep.numbers(sweep.BLOCK_LENGTHS, int),
    row=shared.row_settings(opened),
    own_limit=shared.MAX_NEW_TOKENS.present,
    batch_size=shared.batch_size(),
    enable_thinking=shared.ENABLE_THINKING.value,
    limit=_LIMIT.value,
    num_fewshot=_NUM_FEWSHOT.value,
    chat=shared.CHAT.value,
    unsafe_code=_UNSAFE_CODE.value,
    include_path=_INCLUDE_PATH.value,
    traced=_TRACED.value,
    speed_of_light=_SPEED_OF_LIGHT.value,
    lora=shared.LORA.value,
    dtype=shared.DTYPE.value,
    quantize=shared.QUANTIZE.value,
    attention=shared.ATTENTION.value,
    mesh=shared.MESH.value,
  )


def say(text: str) -> None:
  """Progress goes to standard error."""
  print(text, file=sys.stderr, flush=True)


def console() -> None:
  """Entry point of the installed command."""
  process.console(main)


if __name__ == "__main__":
  console()
