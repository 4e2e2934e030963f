"""Decodes the tasks of a job and writes what comes of every line."""

import collections
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from nemodiff_jax import api
from nemodiff_jax.api import DecodeOutput
from nemodiff_jax.cli import flags
from nemodiff_jax.cli.jobs import BatchTask, Item, Reader, Refused, Task
from nemodiff_jax.cli.progress import Progress
from nemodiff_jax.cli.results import Writer
from nemodiff_jax.decode.config import DecodeConfig
from nemodiff_jax.decode.memory import check_memory
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import Checkpoint

_LEAD = 8  # Batches that results may be held back for, by --keep_order.
Results = Iterator[tuple[Task | BatchTask, Any]]


def run_job(
  reader: Reader,
  items: Sequence[Item],
  size: int,
  path: str | None,
  settings: dict[str, Any],
  keep_order: bool = False,
) -> int:
  """Serves what of a job is not done; returns the exit code, 0 or 3.

  Args:
    reader: that made the items; weights are read if there is something to do.
    items: every line of the job.
    size: prompts decoded together.
    path: --output; None: standard output.
    settings: what decides the results, kept beside the output.
    keep_order: results wait for those of the lines before.

  Raises:
    UserError: the output cannot be used, or a batch does not fit in memory.
  """
  items = [if_it_fits(reader, i) for i in items]
  refused = [i for i in items if isinstance(i, Refused)]
  writer = Writer(path, settings, sys.stdout, refused)
  items = [i for i in items if not writer.has(i)]
  tasks = [i for i in items if not isinstance(i, Refused)]
  errors = len(items) - len(tasks)
  if writer.done:
    done = len(writer.done)
    print(f"{done} done before, {len(tasks)} to do", file=sys.stderr)
  lead = _LEAD * size if keep_order else None
  done = _outputs(reader, tasks, size, lead) if tasks else {}
  progress = Progress(len(tasks))
  try:
    with progress:
      for item, output in (_in_order if keep_order else _as_done)(items, done):
        if isinstance(item, Refused):
          writer.refusal(item)
        elif isinstance(output, UserError):
          errors += 1
          writer.refusal(Refused(item.line, item.id, output, True))
        else:
          progress.add(*counts(output))
          writer.result(item, output)
  except (KeyboardInterrupt, SystemExit):
    if path is not None:
      print("the same command goes on from here", file=sys.stderr)
    raise
  return progress.end(errors, len(items))


def _outputs(
  reader: Reader, tasks: Sequence[Task | BatchTask], size: int, lead: int | None
) -> dict[type, Results]:
  """By kind of line, what comes of them as they are done."""
  opened, config = reader.checkpoint, reader.config
  own = [t for t in tasks if isinstance(t, Task)]
  batch = [t for t in tasks if isinstance(t, BatchTask)]
  check_fit(opened, config, tasks, size)
  # Requests of a batch may name the mode that uses the drafter.
  drafter = config.mode == "linear_spec" or bool(batch)
  model = flags.load(opened, drafter)
  outputs = api.rows_as_done(
    model, config, [t.prompt for t in own], [t.row for t in own], size, lead
  )
  found: dict[type, Results] = {Task: ((own[i], o) for i, o in outputs)}
  if batch:
    lanes = reader.calls.lanes(model, size, max(sum(t.sizes) for t in batch))
    requests = [t.request for t in batch]
    answers = reader.calls.answers(lanes, requests, size, lead)
    found[BatchTask] = ((batch[i], o) for i, o in answers)
  return found


def counts(output: DecodeOutput | dict[str, Any]) -> tuple[int, int]:
  """Tokens and passes of an output, or of the body of an answer."""
  if isinstance(output, DecodeOutput):
    return output.completion_tokens, output.nfe
  return output["usage"]["completion_tokens"], output["usage"]["nfe"]


def _as_done(
  items: Sequence[Item], done: dict[type, Results]
) -> Iterator[tuple[Item, Any]]:
  """Results as they come, each behind the lines refused before its own."""
  refused = collections.deque(i for i in items if isinstance(i, Refused))
  for task, output in itertools.chain.from_iterable(done.values()):
    while refused and refused[0].line < task.line:
      yield refused.popleft(), None
    yield task, output
  yield from ((item, None) for item in refused)


def _in_order(
  items: Sequence[Item], done: dict[type, Results]
) -> Iterator[tuple[Item, Any]]:
  """Lines in their order; what is held back is lost if the job is stopped."""
  held: dict[int, Any] = {}
  for item in items:
    if isinstance(item, Refused):
      yield item, None
      continue
    while item.line not in held:
      task, output = next(done[type(item)])
      held[task.line] = output
    yield item, held.pop(item.line)


def check_fit(
  opened: Checkpoint,
  config: DecodeConfig,
  tasks: Sequence[Task | BatchTask],
  size: int,
) -> None:
  """Raises a UserError if tasks do not fit in memory, `size` at a time."""
  check_memory(
    opened.config,
    config,
    flags.DTYPE.value or api.default_dtype(),
    min(size, len(tasks)),
    max(t.sizes[0] for t in tasks),
    max(t.sizes[1] for t in tasks),
    scheme=opened.loaded_scheme(flags.QUANTIZE.value),
    devices=flags.devices(opened),
  )


def if_it_fits(reader: Reader, item: Item) -> Item:
  """Refuses a line that would not even fit alone."""
  if isinstance(item, Refused):
    return item
  try:
    check_fit(reader.checkpoint, reader.config, [item], 1)
  except UserError as e:
    return Refused(item.line, item.id, e, isinstance(item, BatchTask))
  return item
