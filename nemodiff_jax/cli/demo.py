"""Decodes one prompt in all four modes, side by side.

    python -m nemodiff_jax.cli.demo [--checkpoint=DIR] [--prompt=TEXT]

Prints the text of each mode and a table: tokens, passes (nfe), tokens per
forward, tokens per second (the best of five runs, after one that compiles), and
whether the text is that of ar.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from absl import flags

from nemodiff_jax import api
from nemodiff_jax.cli import flags as shared
from nemodiff_jax.cli import main as process
from nemodiff_jax.decode.config import MODES

# A word problem that the embedded checkpoint was not trained on.
HELD_OUT = "How many legs do 4 shrimps, 6 owls and 4 dogs have in all?"
_PROMPT = flags.DEFINE_string(
  "prompt", HELD_OUT, "The question; with no chat template, the plain prompt."
)
flags.adopt_module_key_flags(shared)


def main() -> int:
  """Runs the command; returns the exit code."""
  opened = shared.checkpoint()
  model = shared.load(opened)
  settings: dict[str, Any] = dataclasses.asdict(shared.row_settings(opened))
  settings["block_length"] = shared.block_length()
  prompt: Any = _PROMPT.value
  print(f"{prompt}\n")
  if model.template is not None:
    prompt = [{"role": "user", "content": prompt}]
  rows, ar = [], None
  for mode in MODES:
    run = lambda mode=mode: api.generate(model, prompt, mode=mode, **settings)[
      0
    ]
    output = run()
    seconds = min(_seconds(run) for _ in range(5))
    ar = ar or output
    print(f"--- {mode}\n{output.text}\n")
    per_pass = output.tokens_per_forward
    rows.append(
      (
        mode,
        str(output.completion_tokens),
        str(output.nfe),
        "-" if per_pass is None else f"{per_pass:.2f}",
        f"{output.completion_tokens / seconds:.0f}",
        "yes" if output.token_ids == ar.token_ids else "no",
      )
    )
  _table(
    ("mode", "tokens", "nfe", "tokens/forward", "tok/s", "same as ar"), rows
  )
  return 0


def _seconds(run: Callable[[], Any]) -> float:
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
  widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
  for row in (head, tuple("-" * w for w in widths), *rows):
    cells = (c.ljust(w) for c, w in zip(row, widths, strict=True))
    print("  ".join(cells).rstrip())


def console() -> None:
  """Entry point of the installed command."""
  process.console(main)


if __name__ == "__main__":
  console()
