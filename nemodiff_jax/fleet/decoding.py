"""A model that stays, and an engine that serves one part after another."""

import contextlib
import dataclasses
import gc
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from nemodiff_jax import api, backend
from nemodiff_jax.batch import by_engine
from nemodiff_jax.cli import flags as shared
from nemodiff_jax.cli.jobs import BatchTask, Reader, Refused, Task
from nemodiff_jax.cli.results import refusal_fields, result_fields
from nemodiff_jax.cli.run_job import counts, if_it_fits
from nemodiff_jax.decode.config import DecodeConfig, RowSettings
from nemodiff_jax.decode.prefill import bucket
from nemodiff_jax.engines import open_engine
from nemodiff_jax.errors import UserError
from nemodiff_jax.fleet import source
from nemodiff_jax.serve.engine import STOP_IDS, Engine
from nemodiff_jax.serve.lanes import Lanes

_POSITIONS = 256  # Of a row of the first engine, at least.


@dataclasses.dataclass
class Told:
  """What is told of a part.

  Attributes:
    rows: by the number of the line.
    errors: lines that could not be served.
    tokens: of all outputs.
    passes: of all outputs.
  """

  rows: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
  errors: int = 0
  tokens: int = 0
  passes: int = 0

  def add(
    self, task: Task | BatchTask, output: api.DecodeOutput | dict[str, Any]
  ) -> None:
    """Tells of a task that was served."""
    self.rows[task.line] = result_fields(task, output)
    tokens, passes = counts(output)
    self.tokens += tokens
    self.passes += passes

  def refuse(self, refused: Refused) -> None:
    """Tells why a line was not served."""
    self.rows[refused.line] = refusal_fields(refused)
    self.errors += 1


def open_decoding(
  argv: Sequence[str], directory: str, requests: bool
) -> "Decoding":
  """Reads the model that flags name, as the command on one machine would.

  Args:
    argv: flags of the command, of those that all commands share.
    directory: that relative paths in them start from, if it is there.
    requests: there are lines in the form of OpenAI's batch files.

  Raises:
    UserError: the model cannot be had.
  """
  with contextlib.suppress(OSError):
    os.chdir(directory)
  flags.FLAGS(["actor", *argv])
  backend.prepare()
  opened = shared.checkpoint()
  config = shared.run_config(opened.config)
  reader = Reader(
    opened,
    config,
    shared.row_settings(opened),
    shared.max_length(),
    shared.CHAT.value,
    shared.ENABLE_THINKING.value,
  )
  # Requests may name the mode that uses the drafter.
  model = shared.load(opened, config.mode == "linear_spec" or requests)
  return Decoding(reader, model, shared.batch_size())


class Decoding:
  """Serves parts, one at a time."""

  def __init__(self, reader: Reader, model: api.Model, size: int):
    """Compiles nothing yet; `size` rows run at once."""
    self._reader = reader
    self._model = model
    self._size = size
    self._engine: Engine | None = None
    self._needs = 0, 0, 0
    self._lanes: Lanes | None = None
    self._longest = 0  # Positions of a request in the lanes.

  def tell(self, part: source.Part) -> Told:
    """Decodes what can be served of a part.

    Raises:
      UserError: its rows do not fit in memory, or its file is not what it was.
    """
    seen = dict(part.seen)
    items = [self._reader.item(line, seen) for line in source.read(part)]
    items = [if_it_fits(self._reader, item) for item in items]
    told = Told()
    for item in items:
      if isinstance(item, Refused):
        told.refuse(item)
    tasks = [item for item in items if not isinstance(item, Refused)]
    # The longest first: nobody waits for it in the end.
    tasks.sort(key=lambda task: sum(task.sizes), reverse=True)
    own = [t for t in tasks if isinstance(t, Task)]
    requests = [t for t in tasks if isinstance(t, BatchTask)]
    for task, output in itertools.chain(
      self._outputs(own), self._answers(requests)
    ):
      if isinstance(output, UserError):
        told.refuse(Refused(task.line, task.id, output, True))
      else:
        told.add(task, output)
    return told

  def _outputs(
    self, tasks: Sequence[Task]
  ) -> Iterator[tuple[Task, api.DecodeOutput]]:
    if not tasks:
      return
    prompts, rows = [t.prompt for t in tasks], [t.row for t in tasks]
    size = min(self._size, len(tasks))
    api.check_batch(self._model, self._reader.config, prompts, rows, size)
    engine = self._ready(prompts, rows)
    for i, output in by_engine(engine, self._model, prompts, rows, self._size):
      yield tasks[i], output

  def _answers(
    self, tasks: Sequence[BatchTask]
  ) -> Iterator[tuple[BatchTask, dict[str, Any] | UserError]]:
    if not tasks:
      return
    calls = self._reader.calls
    longest = bucket(max(sum(t.sizes) for t in tasks), _POSITIONS)
    if self._lanes is None or longest > self._longest:
      self._lanes = None
      gc.collect()
      self._lanes = calls.lanes(self._model, self._size, longest)
      self._longest = longest
    requests = [t.request for t in tasks]
    for i, answer in calls.answers(self._lanes, requests, self._size):
      yield tasks[i], answer

  def _ready(
    self, prompts: Sequence[Sequence[int]], rows: Sequence[RowSettings]
  ) -> Engine:
    """The engine; another one where these rows need more than it has.

    A need is rounded up, so that few parts need another engine.
    """
    most = max(rows, key=lambda r: -1 if r.logprobs is None else r.logprobs)
    ends = max(rows, key=lambda r: len(r.stop_token_ids))
    stops = len(ends.stop_token_ids) + len(self._model.config.eos_ids)
    longest = max(
      len(p) + r.max_new_tokens for p, r in zip(prompts, rows, strict=True)
    )
    needs = (
      bucket(longest, _POSITIONS),
      0 if most.logprobs is None else 1 + most.logprobs,
      bucket(stops, STOP_IDS),
    )
    wanted = tuple(map(max, needs, self._needs))
    if self._engine is None or wanted != self._needs:
      self._engine = None
      gc.collect()  # Its pages make room for those of the next.
      self._engine = _engine(
        self._model, self._reader.config, self._size, *wanted
      )
      self._needs = wanted
    return self._engine


def _engine(
  model: api.Model,
  config: DecodeConfig,
  size: int,
  longest: int,
  logprobs: int,
  stops: int,
) -> Engine:
  """An engine for rows of these needs, and no more."""
  own = stops - len(model.config.eos_ids)
  row = RowSettings(
    logprobs=logprobs - 1 if logprobs else None,
    stop_token_ids=(0,) * own,
  )
  return open_engine(
    model, config, rows=size, max_length=longest, settings=[row]
  )
