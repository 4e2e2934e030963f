r"""Decodes one prompt, or a JSONL file of them.

    python -m nemodiff_jax.cli.generate --checkpoint=DIR --prompt='Once'
    python -m nemodiff_jax.cli.generate --checkpoint=DIR \
        --mode=linear_spec --prompts_file=in.jsonl --output=out.jsonl

A line of the prompts file is {"id", "prompt" | "prompt_ids", settings...}; a
line of the output {"id", "text", "token_ids", "finish_reason", "mode", "nfe",
"tokens_per_forward", "prompt_tokens", "completion_tokens"}. A line that cannot
be served gives {"id", "line", "error"} and exit code 3. With --output, a
stopped job goes on where it was.
"""

import dataclasses
import sys
from collections.abc import Iterable
from typing import Any

import tqdm
from absl import flags

from nemodiff_jax import api
from nemodiff_jax.cli import flags as shared
from nemodiff_jax.cli import jobs
from nemodiff_jax.decode.config import DecodeConfig, RowSettings
from nemodiff_jax.decode.memory import check_memory
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import Checkpoint

_PROMPT = flags.DEFINE_string("prompt", None, "The prompt, as text.")
_PROMPTS_FILE = flags.DEFINE_string(
  "prompts_file", None, "JSONL file with a prompt and its settings per line."
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "JSONL file to append results to. Default: standard output."
)
flags.adopt_module_key_flags(shared)


def main() -> int:
  """Runs the command; returns the exit code."""
  prompt, file = _PROMPT.value, _PROMPTS_FILE.value
  if (prompt is None) == (file is None):
    raise UserError("expected one of --prompt and --prompts_file.")
  row, size = shared.row_settings(), shared.batch_size()
  attention = shared.attention()
  opened = shared.checkpoint()
  config = shared.run_config(opened)
  reader = jobs.Reader(
    opened.config, opened.tokenizer, row, shared.max_length()
  )
  if file is None:
    items = [reader.task({"prompt": prompt}, 1, 1)]
  else:
    items = list(reader.read(file))
  settings = _settings(opened, config, row, attention)
  writer = jobs.Writer(_OUTPUT.value, settings, sys.stdout)
  refused = [i for i in items if isinstance(i, jobs.Refused)]
  tasks = [
    i for i in items if isinstance(i, jobs.Task) and i.id not in writer.done
  ]
  for item in refused:
    writer.refusal(item)
  if writer.done:
    print(
      f"{len(writer.done)} done before, {len(tasks)} to do", file=sys.stderr
    )
  if tasks:
    results = _decode(opened, config, tasks, size)
    if file is None and _OUTPUT.value is None:
      _show(results)
    else:
      for task, output in results:
        writer.result(task, output)
  return 3 if refused else 0


def _decode(
  opened: Checkpoint, config: DecodeConfig, tasks: list[jobs.Task], size: int
) -> Iterable[tuple[jobs.Task, api.DecodeOutput]]:
  check_memory(
    opened.config,
    config,
    shared.DTYPE.value or api.default_dtype(),
    min(size, len(tasks)),
    max(len(t.prompt) for t in tasks),
    max(t.row.max_new_tokens for t in tasks),
  )
  model = shared.load(opened)
  outputs = api.generate_rows(
    model, config, [t.prompt for t in tasks], [t.row for t in tasks], size
  )
  bar = tqdm.tqdm(outputs, total=len(tasks), unit="prompt", disable=None)
  return zip(tasks, bar, strict=True)


def _show(results: Iterable[tuple[jobs.Task, api.DecodeOutput]]) -> None:
  """The text on standard output, the figures beside it."""
  for _, output in results:
    print(output.token_ids if output.text is None else output.text)
    print(
      f"[{output.mode}: {output.completion_tokens} tokens in {output.nfe}"
      f" passes, {output.finish_reason}]",
      file=sys.stderr,
    )


def _settings(
  opened: Checkpoint,
  config: DecodeConfig,
  row: RowSettings,
  attention: str | None,
) -> dict[str, Any]:
  """Everything that decides the results, for the file beside --output."""
  return {
    "checkpoint": str(opened.folder.resolve()),
    **dataclasses.asdict(config),
    **dataclasses.asdict(row),
    "stop_token_ids": list(row.stop_token_ids),
    "lora": shared.LORA.value,
    "dtype": shared.DTYPE.value or api.default_dtype(),
    "attention": attention,
    "prompt": _PROMPT.value,
  }


def console() -> None:
  """Entry point of the installed command."""
  shared.run(main)


if __name__ == "__main__":
  console()
