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
gives {"id", "line", "error"} and exit code 3. Lines of OpenAI's batch files are
taken too, and answered in their form: see docs/jobs.md. Results are written as
they are done, in no order unless --keep_order says so. With --output, a stopped
job goes on where it was; OUTPUT.settings.json beside it holds its settings.
"""

import sys
from collections.abc import Iterable
from typing import Any

from absl import flags

from nemodiff_jax import api, infilling, streams
from nemodiff_jax.cli import flags as shared
from nemodiff_jax.cli import job_flags, jobs, run_job, trace_view
from nemodiff_jax.cli import main as process
from nemodiff_jax.decode.config import DecodeConfig
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import Checkpoint

_PROMPT = flags.DEFINE_string("prompt", None, "The prompt, as text.")
_KEEP_ORDER = flags.DEFINE_bool(
  "keep_order",
  False,
  "Write results in the order of the lines, not as they are done.",
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
flags.adopt_module_key_flags(job_flags)
flags.adopt_module_key_flags(shared)
_INFILL = flags.DEFINE_string(
  "infill",
  None,
  "A text with holes, {mask:12} or {mask:1-12} (in tokens), that diffusion fills"
  " in; with --prompt, the text that follows it.",
)


def main() -> int:
  """Runs the command; returns the exit code."""
  prompt, file = _PROMPT.value, job_flags.PROMPTS_FILE.value
  if _INFILL.value is not None:
    return _infill(_INFILL.value, prompt)
  if (prompt is None) == (file is None):
    raise UserError("expected one of --prompt and --prompts_file.")
  watched = _STREAM.value or _TRACE.value
  if watched and (file or job_flags.OUTPUT.value is not None):
    raise UserError("--stream and --trace need --prompt, without --output.")
  opened = shared.checkpoint()
  row, size = shared.row_settings(opened), shared.batch_size()
  shared.attention(opened)  # Refuses what cannot run before much is read.
  config = shared.run_config(opened.config)
  shared.devices(opened)
  limit, think = shared.max_length(), shared.ENABLE_THINKING.value
  chat = shared.CHAT.value
  reader = jobs.Reader(opened, config, row, limit, chat, think)
  if file is not None:
    items = list(reader.read(file))
  else:
    items = [task := reader.task({"prompt": prompt}, 1, 1)]
    run_job.check_fit(opened, config, [task], 1)
    if job_flags.OUTPUT.value is None:
      return _show(opened, config, task)
  settings = shared.deciding(opened, config, row)
  settings["prompt"] = prompt
  return run_job.run_job(
    reader, items, size, job_flags.OUTPUT.value, settings, _KEEP_ORDER.value
  )


def _show(opened: Checkpoint, config: DecodeConfig, task: jobs.Task) -> int:
  """Prints what comes of one prompt."""
  model = shared.load(opened, config.mode == "linear_spec")
  if _TRACE.value:
    output = trace_view.show(
      model, config, task.prompt, task.row, _TRACE.value, str(_PROMPT.value)
    )
  elif _STREAM.value:
    output = _stream(streams.pieces(model, config, task.prompt, task.row))
  else:
    (output,) = api.generate_rows(model, config, [task.prompt], [task.row], 1)
    print(output.token_ids if output.text is None else output.text)
  print(
    f"[{output.mode}: {output.completion_tokens} tokens in {output.nfe} passes,"
    f" {output.finish_reason}]",
    file=sys.stderr,
  )
  return 0


def _infill(text: str, prompt: str | None) -> int:
  """Prints a text with its holes filled."""
  said = (shared.MAX_NEW_TOKENS, shared.STOP, shared.LOGPROBS)
  jobs_own = (job_flags.PROMPTS_FILE, job_flags.OUTPUT, _STREAM, _TRACE)
  for flag in (*said, shared.MAX_THINKING_TOKENS, *jobs_own):
    if flag.present:
      raise UserError(f"--{flag.name} is not for --infill.")
  if shared.MODE.value not in (None, "diffusion"):
    raise UserError(
      f"--infill is done by diffusion; leave --mode={shared.MODE.value} out."
    )
  opened = shared.checkpoint()
  config = shared.run_config(opened.config, "diffusion")
  row = shared.row_settings(opened)
  before: list[int] = []
  if prompt is not None:
    limit, think = shared.max_length(), shared.ENABLE_THINKING.value
    chat = shared.CHAT.value
    reader = jobs.Reader(opened, config, row, limit, chat, think)
    before = reader.task({"prompt": prompt}, 1, 1).prompt
  model = shared.load(opened, drafter=False)
  output = infilling.fill(model, config, row, text, before)
  print(output.text)
  print(
    f"[diffusion: {sum(map(len, output.token_ids))} tokens in {output.nfe}"
    f" passes, {len(output.fills)} holes]",
    file=sys.stderr,
  )
  return 0


def _stream(items: Iterable[Any]) -> Any:
  """Prints pieces of text as they come; returns the last item, the output."""
  item = None
  for item in items:
    if isinstance(item, str):
      print(item, end="", flush=True)
  print()
  return item


def console() -> None:
  """Entry point of the installed command."""
  process.console(main)


if __name__ == "__main__":
  console()
