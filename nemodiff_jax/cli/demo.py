"""Decodes questions in all four modes, side by side.

    python -m nemodiff_jax.cli.demo [--checkpoint=DIR] [--prompt=TEXT]

Prints the text of the first question in each mode and a table over all of them:
tokens, passes (nfe), tokens per forward, tokens per second (the median of the
questions, each the better of two runs), and whether the texts are those of ar.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from nemodiff_jax import api
from nemodiff_jax.cli import flags as shared
from nemodiff_jax.cli import main as process
from nemodiff_jax.decode.config import MODES

# Word problems that the embedded checkpoint was not trained on.
HELD_OUT = (
  "How many legs do 4 shrimps, 6 owls and 4 dogs have in all?",
  "How many legs do 8 crabs, 4 owls and 6 ants have in all?",
  "How many legs do 3 owls, 4 spiders and 5 bees have in all?",
)
_PROMPT = flags.DEFINE_string(
  "prompt",
  None,
  "The question; with no chat template, the plain prompt. Default: questions"
  " that the embedded checkpoint was not trained on.",
)
flags.adopt_module_key_flags(shared)
_WHY = """
A pass of 16 positions costs a CPU several times what a pass of one costs; a GPU,
whose passes wait for the weights, hardly more. So there it is tokens/forward
that says how fast a mode is.
"""


def main() -> int:
  """Runs the command; returns the exit code."""
  opened = shared.checkpoint()
  model = shared.load(opened)
  settings: dict[str, Any] = dataclasses.asdict(shared.row_settings(opened))
  settings["block_length"] = shared.block_length()
  prompts: list[Any] = [_PROMPT.value] if _PROMPT.value else [*HELD_OUT]
  print(f"{prompts[0]}\n")
  if model.template is not None:
    prompts = [[{"role": "user", "content": p}] for p in prompts]
  rows, ar = [], None
  for mode in MODES:
    run = lambda prompt, mode=mode: api.generate(
      model, prompt, mode=mode, **settings
    )[0]
    outputs = [run(p) for p in prompts]
    ar = ar or outputs
    print(f"--- {mode}\n{outputs[0].text}\n")
    rows.append((mode, *_figures(outputs, ar, run, prompts)))
  _table(
    ("mode", "tokens", "nfe", "tokens/forward", "tok/s", "same as ar"), rows
  )
  print(_WHY, end="")
  return 0


def _figures(
  outputs: Sequence[api.DecodeOutput],
  ar: Sequence[api.DecodeOutput],
  run: Callable[[Any], Any],
  prompts: Sequence[Any],
) -> tuple[str, ...]:
  """A mode's cells of the table."""
  tokens = [o.completion_tokens for o in outputs]
  passes = sum(o.nfe for o in outputs)
  rates = [
    n / min(_seconds(run, p) for _ in range(2))
    for n, p in zip(tokens, prompts, strict=True)
  ]
  same = [o.token_ids for o in outputs] == [o.token_ids for o in ar]
  return (
    str(sum(tokens)),
    str(passes),
    f"{sum(tokens) / passes:.2f}" if passes else "-",
    f"{statistics.median(rates):.0f}",
    "yes" if same else "no",
  )


def _seconds(run: Callable[[Any], Any], prompt: Any) -> float:
  start = time.perf_counter()
  run(prompt)
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
