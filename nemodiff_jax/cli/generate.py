r"""Decodes one prompt, or a JSONL file of them.

    python -m nemodiff_jax.cli.generate --checkpoint=DIR --prompt='Once'
    python -m nemodiff_jax.cli.generate --checkpoint=DIR \
        --mode=linear_spec --prompts_file=in.jsonl --output=out.jsonl

A line of the prompts file is {"id", "prompt" | "prompt_ids" | "messages",
settings...}, the settings being enable_thinking and those of a row in
docs/decoding.md; without an id, it is the line's number. A line of the output is
{"id", "text", "token_ids", "finish_reason", "mode", "nfe",
"tokens_per_forward", "prompt_tokens", "completion_tokens"}, with "accepted" in
the speculative modes and "logprobs" where asked. A line that cannot be served
gives {"id", "line", "error"} and exit code 3. With --output, a stopped job goes
on where it was; OUTPUT.settings.json beside it holds its settings.
"""

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import tqdm
from absl import flags

from nemodiff_jax import api, streams
from nemodiff_jax.cli import flags as shared
from nemodiff_jax.cli import jobs, trace_view
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
_CHAT = flags.DEFINE_bool(
  "chat", False, "Take the prompt as a message, through the chat template."
)
_STREAM = flags.DEFINE_bool(
  "stream", False, "With --prompt: print the text as it becomes certain."
)
_TRACE = flags.DEFINE_string(
  "trace",
  None,
  "With --prompt: write every pass to this .json file, or to an .html page that"
  " plays it; '-': show the block being refined in the terminal.",
)
flags.adopt_module_key_flags(shared)


def main() -> int:
  """Runs the command; returns the exit code."""
  prompt, file = _PROMPT.value, _PROMPTS_FILE.value
  if (prompt is None) == (file is None):
    raise UserError("expected one of --prompt and --prompts_file.")
  watched = _STREAM.value or _TRACE.value
  if watched and (file or _OUTPUT.value):
    raise UserError("--stream and --trace need --prompt, without --output.")
  row, size = shared.row_settings(), shared.batch_size()
  opened = shared.checkpoint()
  shared.attention(opened)  # Refuses what cannot run before much is read.
  config = shared.run_config(opened)
  shared.devices(opened)
  limit, think = shared.max_length(), shared.ENABLE_THINKING.value
  reader = jobs.Reader(opened, row, limit, _CHAT.value, think)
  if file is not None:
    items = list(reader.read(file))
    return _job(opened, config, items, size, _settings(opened, config, row))
  task = reader.task({"prompt": prompt}, 1, 1)
  _check_fit(opened, config, [task], 1)
  if _OUTPUT.value is not None:
    return _job(opened, config, [task], 1, _settings(opened, config, row))
  model = shared.load(opened, config.mode == "linear_spec")
  if _TRACE.value:
    output = trace_view.show(model, config, task.prompt, task.row, _TRACE.value)
  else:
    output = _print(model, config, task)
  print(
    f"[{output.mode}: {output.completion_tokens} tokens in {output.nfe} passes,"
    f" {output.finish_reason}]",
    file=sys.stderr,
  )
  return 0


def _job(
  opened: Checkpoint,
  config: DecodeConfig,
  items: Sequence[jobs.Task | jobs.Refused],
  size: int,
  settings: dict[str, Any],
) -> int:
  writer = jobs.Writer(_OUTPUT.value, settings, sys.stdout)
  items = [i for i in items if i.id is None or i.id not in writer.done]
  items = [_if_it_fits(opened, config, i) for i in items]
  refused = [i for i in items if isinstance(i, jobs.Refused)]
  tasks = [i for i in items if isinstance(i, jobs.Task)]
  for item in refused:
    writer.refusal(item)
  if writer.done:
    done = len(writer.done)
    print(f"{done} done before, {len(tasks)} to do", file=sys.stderr)
  if tasks:
    _check_fit(opened, config, tasks, size)
    model = shared.load(opened, config.mode == "linear_spec")
    outputs = api.generate_rows(
      model, config, [t.prompt for t in tasks], [t.row for t in tasks], size
    )
    bar = tqdm.tqdm(outputs, total=len(tasks), unit="prompt", disable=None)
    try:
      for task, output in zip(tasks, bar, strict=True):
        writer.result(task, output)
    except KeyboardInterrupt:
      if _OUTPUT.value is not None:
        print("the same command goes on from here", file=sys.stderr)
      raise
  if refused:
    print(
      f"{len(refused)} of {len(items)} lines could not be served: see their"
      " 'error'",
      file=sys.stderr,
    )
  return 3 if refused else 0


def _if_it_fits(
  opened: Checkpoint, config: DecodeConfig, item: jobs.Task | jobs.Refused
) -> jobs.Task | jobs.Refused:
  """Refuses a line that would not even fit alone."""
  if isinstance(item, jobs.Task):
    try:
      _check_fit(opened, config, [item], 1)
    except UserError as e:
      return jobs.Refused(item.line, item.id, e)
  return item


def _check_fit(
  opened: Checkpoint,
  config: DecodeConfig,
  tasks: Sequence[jobs.Task],
  size: int,
) -> None:
  check_memory(
    opened.config,
    config,
    shared.DTYPE.value or api.default_dtype(),
    min(size, len(tasks)),
    max(len(t.prompt) for t in tasks),
    max(t.row.max_new_tokens for t in tasks),
    scheme=opened.loaded_scheme(shared.QUANTIZE.value),
    devices=shared.devices(opened),
  )


def _print(
  model: api.Model, config: DecodeConfig, task: jobs.Task
) -> api.DecodeOutput:
  """Prints the text, as it becomes certain with --stream."""
  if _STREAM.value:
    return _stream(streams.watch(model, config, task.prompt, task.row))
  (output,) = api.generate_rows(model, config, [task.prompt], [task.row], 1)
  print(output.token_ids if output.text is None else output.text)
  return output


def _stream(items: Iterable[Any]) -> Any:
  """Prints pieces of text as they come; returns the last item, the output."""
  item = None
  for item in items:
    if isinstance(item, str):
      print(item, end="", flush=True)
  print()
  return item


def _settings(
  opened: Checkpoint,
  config: DecodeConfig,
  row: RowSettings,
) -> dict[str, Any]:
  """Everything that decides the results, for the file beside --output."""
  return {
    "checkpoint": str(opened.folder.resolve()),
    **dataclasses.asdict(config),
    **dataclasses.asdict(row),
    "stop_token_ids": list(row.stop_token_ids),
    "stop": list(row.stop),
    "lora": shared.LORA.value,
    "dtype": shared.DTYPE.value or api.default_dtype(),
    "quantize": shared.QUANTIZE.value,
    "chat": _CHAT.value,
    "enable_thinking": shared.ENABLE_THINKING.value,
    "prompt": _PROMPT.value,
  }


def console() -> None:
  """Entry point of the installed command."""
  shared.run(main)


if __name__ == "__main__":
  console()
