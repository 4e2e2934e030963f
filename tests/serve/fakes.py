"""An engine that says what it is told, and a vocabulary of bytes."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence

from nemodiff_jax.decode.results import Logprobs
from nemodiff_jax.serve.contract import Counts, Event, Job
from nemodiff_jax.serve.queue import QueueFull
from nemodiff_jax.text.stream import TextStream

BOS, EOS, MASK, THINK, END_THINK = 256, 257, 258, 259, 260
NAMES = {
  "<s>": BOS, "</s>": EOS, "<mask>": MASK, "<think>": THINK,
  "</think>": END_THINK,
}  # fmt: skip
SIZE = 272
FEATURES = frozenset({"adjust", "prompt_logprobs", "grammar", "prediction"})


class ByteTokenizer:
  """Ids are bytes, and five special tokens behind them."""

  def encode(self, text):
    return [BOS, *text.encode()]

  def encode_rendered(self, text):
    ids, at = [], 0
    while at < len(text):
      name = next((n for n in NAMES if text.startswith(n, at)), None)
      ids += [NAMES[name]] if name else text[at].encode()
      at += len(name) if name else 1
    return ids

  def encode_rendered_offsets(self, text):
    raise NotImplementedError

  def decode(self, ids):
    return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

  def id_of(self, token):
    return NAMES.get(token)

  def pieces(self):
    return [bytes([i]) for i in range(256)] + [None] * 16


@dataclasses.dataclass
class Running:
  """A row of the fake engine."""

  job: Job
  script: list[int]
  stream: TextStream
  shown: int = 0
  said: list[int] = dataclasses.field(default_factory=list)
  matched: int | str | None = None


class FakeEngine:
  """Says `script(job)`, a few tokens per step.

  Attributes:
    jobs: all that were submitted.
    cancelled: requests that were cancelled.
  """

  features = FEATURES

  def __init__(
    self,
    script: Callable[[Job], Sequence[int]],
    per_step: int = 2,
    queue: int = 1000,
  ):
    self.jobs: list[Job] = []
    self.cancelled: list[int] = []
    self.fault: Exception | None = None
    self._script = script
    self._per_step = per_step
    self._queue = queue
    self._rows: dict[int, Running] = {}
    self._ids = itertools.count()

  def submit(self, job: Job) -> int:
    if len(self._rows) >= self._queue:
      raise QueueFull(len(self._rows), self._queue)
    ident = next(self._ids)
    script = [] if job.score_only else list(self._script(job))
    stream = TextStream(ByteTokenizer(), job.row.stop)
    self.jobs.append(job)
    self._rows[ident] = Running(job, script, stream)
    return ident

  def step(self) -> list[Event]:
    if self.fault is not None:
      raise self.fault
    return [self._advance(i, row) for i, row in list(self._rows.items())]

  def busy(self) -> bool:
    return bool(self._rows)

  def cancel(self, request: int) -> None:
    if self._rows.pop(request, None) is not None:
      self.cancelled.append(request)

  def flush(self) -> bool:
    return not self._rows

  def statistics(self) -> dict[str, float]:
    return {"running": len(self._rows), "waiting": 0, "rows": 8}

  def _advance(self, ident: int, row: Running) -> Event:
    new, reason, first = [], None, not row.said
    asked = row.job.row
    stops = (*asked.stop_token_ids, *(() if asked.ignore_eos else (EOS,)))
    for token in row.script[len(row.said) :][: self._per_step]:
      new.append(token)
      row.said.append(token)
      if token in stops:
        reason, row.matched = "stop", None if token == EOS else token
        break
      if row.stream.push(token):
        text = bytes(row.said).decode("utf-8", "replace")
        row.matched = next(s for s in asked.stop if s in text)
        reason = "stop"
        break
      if len(row.said) == asked.max_new_tokens:
        reason = "length"
        break
    if reason is None and len(row.said) == len(row.script):
      reason = "length"
    text = row.stream.close() if reason else row.stream.text
    event = Event(
      ident,
      new,
      text[row.shown :],
      _logprobs(new, asked.logprobs),
      self._scored(row.job) if first else None,
      reason,
      row.matched,
      _counts(row.job, len(row.said)) if reason else None,
    )
    row.shown = len(text)
    if reason:
      del self._rows[ident]
    return event

  def _scored(self, job: Job) -> Logprobs | None:
    if job.prompt_logprobs is None:
      return None
    start, top = job.prompt_logprobs
    found = _logprobs(job.prompt[start:], top)
    if start == 0:
      found.token[0], found.top_ids[0], found.top[0] = None, [], []
    return found


def _counts(job: Job, said: int) -> Counts:
  return Counts(
    nfe=said // 2 + 1, mode="linear_spec", block=16, cycles=1, accepted=said,
    drafted=16, places=[1] * said, reused=3, predicted=min(said, len(job.prediction)),
  )  # fmt: skip


def _logprobs(ids: Sequence[int], top: int | None) -> Logprobs | None:
  """Made up: a token's is minus its id / 1000; it is the likeliest itself."""
  if top is None:
    return None
  return Logprobs(
    [-i / 1000 for i in ids],
    [[i, *range(65, 64 + top)][:top] for i in ids],
    [[-i / 1000, *[-5.0] * (top - 1)][:top] for i in ids],
  )


class Slow(FakeEngine):
  """A step takes a hundredth of a second."""

  def step(self):
    time.sleep(0.01)
    return super().step()
