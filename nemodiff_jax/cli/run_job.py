"""Decodes the tasks of a job and writes what comes of every line."""

import collections
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from nemodiff_jax import api
from nemodiff_jax.cli import flags
from nemodiff_jax.cli.jobs import Refused, Task
from nemodiff_jax.cli.progress import Progress
from nemodiff_jax.cli.results import Writer
from nemodiff_jax.decode.config import DecodeConfig
from nemodiff_jax.decode.memory import check_memory
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import Checkpoint

_LEAD = 8  # Batches that results may be held back for, by --keep_order.


def run_job(
  opened: Checkpoint,
  config: DecodeConfig,
  items: Sequence[Task | Refused],
  size: int,
  path: str | None,
  settings: dict[str, Any],
  keep_order: bool = False,
) -> int:
  """Serves what of a job is not done; returns the exit code, 0 or 3.

  Args:
    opened: the checkpoint; its weights are read if there is something to do.
    config: how to decode.
    items: every line of the job.
    size: prompts decoded together.
    path: --output; None: standard output.
    settings: what decides the results, kept beside the output.
    keep_order: results wait for those of the lines before.

  Raises:
    UserError: the output cannot be used, or a batch does not fit in memory.
  """
  items = [_if_it_fits(opened, config, i) for i in items]
  refused = [i for i in items if isinstance(i, Refused)]
  writer = Writer(path, settings, sys.stdout, refused)
  items = [i for i in items if not writer.has(i)]
  tasks = [i for i in items if isinstance(i, Task)]
  errors = len(items) - len(tasks)
  if writer.done:
    done = len(writer.done)
    print(f"{done} done before, {len(tasks)} to do", file=sys.stderr)
  outputs = iter(())
  if tasks:
    check_fit(opened, config, tasks, size)
    model = flags.load(opened, config.mode == "linear_spec")
    outputs = api.rows_as_done(
      model, config, [t.prompt for t in tasks], [t.row for t in tasks], size,
      _LEAD * size if keep_order else None,
    )  # fmt: skip
  progress = Progress(len(tasks))
  done = ((tasks[i], progress.add(output)) for i, output in outputs)
  try:
    with progress:
      for item, output in (_in_order if keep_order else _as_done)(items, done):
        if isinstance(item, Refused):
          writer.refusal(item)
        else:
          writer.result(item, output, opened.folder.name)
  except (KeyboardInterrupt, SystemExit):
    if path is not None:
      print("the same command goes on from here", file=sys.stderr)
    raise
  if errors:
    print(
      f"{errors} of {len(items)} lines could not be served: see their 'error'",
      file=sys.stderr,
    )
  print(progress.summary(errors), file=sys.stderr)
  return 3 if errors else 0


def _as_done(
  items: Sequence[Task | Refused], done: Iterator[tuple[Task, Any]]
) -> Iterator[tuple[Task | Refused, Any]]:
  """Results as they come, each behind the lines refused before its own."""
  refused = collections.deque(i for i in items if isinstance(i, Refused))
  for task, output in done:
    while refused and refused[0].line < task.line:
      yield refused.popleft(), None
    yield task, output
  yield from ((item, None) for item in refused)


def _in_order(
  items: Sequence[Task | Refused], done: Iterator[tuple[Task, Any]]
) -> Iterator[tuple[Task | Refused, Any]]:
  """Lines in their order; what is held back is lost if the job is stopped."""
  held: dict[int, Any] = {}
  for item in items:
    if isinstance(item, Refused):
      yield item, None
      continue
    while item.line not in held:
      task, output = next(done)
      held[task.line] = output
    yield item, held.pop(item.line)


def check_fit(
  opened: Checkpoint, config: DecodeConfig, tasks: Sequence[Task], size: int
) -> None:
  """Raises a UserError if tasks do not fit in memory, `size` at a time."""
  check_memory(
    opened.config,
    config,
    flags.DTYPE.value or api.default_dtype(),
    min(size, len(tasks)),
    max(len(t.prompt) for t in tasks),
    max(t.row.max_new_tokens for t in tasks),
    scheme=opened.loaded_scheme(flags.QUANTIZE.value),
    devices=flags.devices(opened),
  )


def _if_it_fits(
  opened: Checkpoint, config: DecodeConfig, item: Task | Refused
) -> Task | Refused:
  """Refuses a line that would not even fit alone."""
  if isinstance(item, Task):
    try:
      check_fit(opened, config, [item], 1)
    except UserError as e:
      return Refused(item.line, item.id, e, item.request is not None)
  return item
