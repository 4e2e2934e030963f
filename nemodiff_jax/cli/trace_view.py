"""Traces of one prompt: JSON, a page to look at, or live in the terminal."""

import importlib.resources
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from nemodiff_jax import api, streams
from nemodiff_jax.decode.config import DecodeConfig, RowSettings
from nemodiff_jax.decode.generate import Step
from nemodiff_jax.decode.trace import trace_passes
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.jsonl import dump_line
from nemodiff_jax.text.tokenizer import Tokenizer

MIN_COLUMNS = 24
_DELAY = 0.1  # Seconds a pass stays on the screen.


def show(
  model: api.Model,
  config: DecodeConfig,
  prompt: Sequence[int],
  row: RowSettings,
  path: str,
) -> api.DecodeOutput:
  """Decodes one checked prompt and writes or shows every pass.

  Args:
    model: from `load`.
    config: how to decode.
    prompt: checked ids.
    row: its settings.
    path: of a .json file, of an .html page that needs nothing else, or '-'
      for the terminal.

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
    content = _content(model, config, prompt, passes, outputs[0])
    text = dump_line(content).decode()
    file.write(_page(text) if path.endswith(".html") else text)
  print(outputs[0].text)
  return outputs[0]


def _content(
  model: api.Model,
  config: DecodeConfig,
  prompt: Sequence[int],
  passes: list[dict[str, Any]],
  output: api.DecodeOutput,
) -> dict[str, Any]:
  """A whole trace; `pieces` spells the tokens of canvases and proposals."""
  say = lambda ids: model.tokenizer.decode(ids) if model.tokenizer else ""
  spelt = {i for p in passes for i in (*p["canvas"], *p["proposed"])}
  return {
    "mode": config.mode,
    "mask_id": model.config.mask_id,
    "prompt": say(prompt),
    "prompt_ids": list(prompt),
    "output": {"text": output.text, "token_ids": output.token_ids},
    "passes": [p | {"text": say(p["tokens"])} for p in passes],
    "pieces": {i: say([i]) for i in sorted(spelt)},
  }


def _page(trace: str) -> str:
  """The page that plays a trace, with the trace in it."""
  page = importlib.resources.files("nemodiff_jax") / "assets" / "trace.html"
  inert = trace.replace("<", "\\u003c")  # Ends no script, opens no comment.
  return page.read_text(encoding="utf-8").replace("/*TRACE*/", inert)


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
      text.append("\u2591", style="dim")
    elif slot:
      text.append(say([token]), style="default")
  return text
