"""Traces of one prompt: JSON, a page to look at, or live in the terminal."""

import functools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from nemodiff_jax import api, streams
from nemodiff_jax.cli.trace_page import page
from nemodiff_jax.decode.config import DecodeConfig, RowSettings
from nemodiff_jax.decode.generate import Step
from nemodiff_jax.decode.spelling import Spelling
from nemodiff_jax.decode.trace import trace_passes
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.jsonl import dump_line
from nemodiff_jax.text.pieces import spelled
from nemodiff_jax.text.tokenizer import Tokenizer

MIN_COLUMNS = 24
_DELAY = 0.2  # Seconds a pass stays on the screen.


def show(
  model: api.Model,
  config: DecodeConfig,
  prompt: Sequence[int],
  row: RowSettings,
  path: str,
  typed: str,
) -> api.DecodeOutput:
  """Decodes one checked prompt and writes or shows every pass.

  Args:
    model: from `load`.
    config: how to decode.
    prompt: checked ids.
    row: its settings.
    path: of a .json file, of an .html page that needs nothing else, or '-'
      for the terminal.
    typed: the prompt as a person typed it.

  Raises:
    UserError: the file cannot be written, or the terminal is too narrow.
  """
  outputs: list[api.DecodeOutput] = []

  def steps() -> Iterator[Step]:
    for item in streams.watch(model, config, prompt, row):
      if isinstance(item, Step):
        yield item
      elif isinstance(item, api.DecodeOutput):
        outputs.append(item)

  if path != "-" and not path.endswith((".json", ".html")):
    raise UserError(
      f"trace should be '-' or end in .json or .html, got {path!r}."
    )
  entries = trace_passes(steps())
  if path == "-":
    _live(model, entries)
    return outputs[0]
  try:
    file = open(os.path.expanduser(path), "w", encoding="utf-8")
  except OSError as e:
    raise UserError(f"trace {path!r} cannot be written: {e}.") from e
  with file:
    passes = list(entries)
    content = _content(model, config, row, typed, passes, outputs[0])
    content["prompt_ids"] = list(prompt)
    text = dump_line(content).decode()
    file.write(page(text) if path.endswith(".html") else text)
  print(outputs[0].text)
  return outputs[0]


def _content(
  model: api.Model,
  config: DecodeConfig,
  row: RowSettings,
  typed: str,
  passes: list[dict[str, Any]],
  output: api.DecodeOutput,
) -> dict[str, Any]:
  """A whole trace; `pieces` spells the tokens of canvases and proposals."""
  tokenizer: Any = model.tokenizer  # Or nothing would have been watched.
  spell = functools.partial(spelled, tokenizer.pieces())
  spelling = Spelling(tokenizer, spell, model.config, row)
  shown = {
    "text": output.text,
    "token_ids": output.token_ids,
    "finish_reason": output.finish_reason,
  }
  return {
    "mode": config.mode,
    "prompt": typed,
    "output": shown,
    **spelling.push(passes, True),
  }


def _live(model: api.Model, entries: Iterator[dict[str, Any]]) -> None:
  import rich.console
  import rich.live
  import rich.text

  console = rich.console.Console(file=sys.stdout)
  if console.width < MIN_COLUMNS:
    raise UserError(
      f"the terminal should be at least {MIN_COLUMNS} columns wide for the live"
      f" view, got {console.width}; widen it, or use --trace=FILE.json."
    )
  with rich.live.Live(console=console, auto_refresh=False) as live:
    said: list[int] = []
    for entry in entries:
      said += entry["tokens"]
      live.update(render(model.tokenizer, model.config.mask_id, said, entry))
      live.refresh()
      if console.is_terminal:
        time.sleep(_DELAY)
  if not console.is_terminal:
    print()  # Live leaves the last line open.


def render(
  tokenizer: Tokenizer | None,
  mask_id: int | None,
  said: Sequence[int],
  entry: dict[str, Any],
) -> Any:
  """The output so far and the block of a pass, as rich text.

  Slots that the pass filled are bold green, tokens known before plain, open
  slots are shaded squares; what a verification confirmed counts as output.
  """
  import rich.cells
  import rich.text

  say = lambda ids: tokenizer.decode(ids) if tokenizer else f"{ids} "
  text = rich.text.Text(
    f"pass {entry['nfe']:>4}  {entry['phase']}"
    + (f"  accepted {entry['accepted']}" if "accepted" in entry else ""),
    style="dim",
  )
  text.append("\n" + say(said), style="default")
  revealed = set(entry.get("revealed", ()))
  if entry["phase"] not in ("denoise", "draft") or entry["ended"]:
    return text
  for slot, token in enumerate(entry["canvas"]):
    if slot in revealed:
      text.append(say([entry["proposed"][slot]]) or " ", style="bold green")
    elif token == mask_id:
      width = rich.cells.cell_len(say([entry["proposed"][slot]]))
      text.append("\u2591" * max(width, 1), style="dim")
    elif slot:
      text.append(say([token]), style="default")
  return text
