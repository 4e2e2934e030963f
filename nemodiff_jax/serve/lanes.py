"""The engine of a server: a lane for each way of decoding, and one cache.

A lane is an engine whose rows all decode in one mode and width. Lanes have the
same weights and the same pages, and take turns by time.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from nemodiff_jax.decode.config import RowSettings
from nemodiff_jax.decode.modes import MODES
from nemodiff_jax.decode.results import Logprobs
from nemodiff_jax.errors import UserError
from nemodiff_jax.serve.cache import Cache
from nemodiff_jax.serve.contract import Counts, Event, Job
from nemodiff_jax.serve.engine import Engine
from nemodiff_jax.serve.generation import Event as Step
from nemodiff_jax.serve.generation import Generation
from nemodiff_jax.serve.guide import Guide
from nemodiff_jax.serve.programs import Key

Name = tuple[str, int | str]  # Mode, and block length or 'auto'.
_POLL = 0.005  # Seconds.


@dataclasses.dataclass(eq=False)
class _Lane:
  """An engine, and the time that it has had.

  Attributes:
    name: mode and width.
    engine: of the lane.
    seconds: of the device, from when it was last without work.
  """

  name: Name
  engine: Engine
  seconds: float = 0.0


class Lanes:
  """An engine of any mode and width, as `contract.Engine` has it."""

  features = frozenset({"adjust", "grammar", "prediction", "prompt_logprobs"})

  def __init__(
    self,
    open_lane: Callable[[Name], Engine],
    cache: Cache,
    default: Name,
    widths: Mapping[str, int | str],
  ):
    """Opens the default lane.

    Args:
      open_lane: makes the engine of a lane, over the shared cache.
      cache: that all share.
      default: mode and width of jobs that name none.
      widths: of jobs that name a mode alone.
    """
    self._open = open_lane
    self._cache = cache
    self._default = default
    self._widths = widths
    self._lanes: dict[Name, _Lane] = {}
    self._requests: dict[Generation, _Lane] = {}
    self._scored: set[Generation] = set()  # Of which no token is wanted.
    self._lane(default)

  def submit(self, job: Job) -> Generation:
    """Queues a job; raises QueueFull, or a UserError for what cannot be."""
    lane = self._lane(self._name(job))
    request = lane.engine.submit(
      job.prompt,
      _settings(job),
      priority=job.priority,
      salt=job.cache_salt,
      stream=job.stream,
      texts=True,
      changes=job.adjust,
      guide=_guide(job, lane),
      scores=job.prompt_logprobs,
      traced=job.passes,
      prepare=True,
    )
    self._requests[request] = lane
    if job.score_only:
      self._scored.add(request)
    return request

  def step(self) -> list[Event]:
    """One visit, of the lane that has had the least time and can do something.

    A lane can do nothing while others hold the pages that its requests need.
    """
    lanes = [lane for lane in self._lanes.values() if not lane.engine.idle]
    events = []
    for lane in sorted(lanes, key=lambda lane: lane.seconds):
      start = time.perf_counter()
      told = lane.engine.step()
      lane.seconds += time.perf_counter() - start
      events += [self._event(lane, event) for event in told]
      if lane.engine.flying:
        return events
    if not events and any(lane.engine.preparing for lane in lanes):
      time.sleep(_POLL)  # All that there is to do waits for a program.
    return events

  def busy(self) -> bool:
    """Whether a step would do anything."""
    return any(not lane.engine.idle for lane in self._lanes.values())

  def cancel(self, request: Generation) -> None:
    """Ends a request, if it has not ended; no event tells of it."""
    lane = self._requests.pop(request, None)
    self._scored.discard(request)
    if lane is not None:
      lane.engine.cancel(request)

  def flush(self) -> bool:
    """Empties the prefix cache; False while requests run."""
    if self._requests:
      return False
    self._cache.pages.flush()
    return True

  def statistics(self) -> Mapping[str, float]:
    """Figures of all lanes together, by name."""
    pages = self._cache.pages
    engines = [lane.engine for lane in self._lanes.values()]
    total: Callable[[Callable[[Engine], float]], float] = lambda f: sum(
      map(f, engines)
    )
    return {
      "running": total(lambda e: len(e.scheduler.held)),
      "waiting": total(lambda e: len(e.scheduler.queue) + e.preparing),
      "pages": pages.pages,
      "pages_used": pages.used,
      "pages_cached": pages.cached,
      "pages_used_fraction": pages.used / pages.pages,
      "evictions": pages.evictions,
      "preemptions": total(lambda e: e.scheduler.preemptions),
      "visits": total(lambda e: e.statistics.visits),
      "passes": total(lambda e: e.statistics.passes),
      "programs": total(lambda e: e.programs),
      "lanes": len(engines),
      "cycles": total(lambda e: e.statistics.cycles),
      "cycle_tokens": total(lambda e: sum(e.statistics.slots)),
      "reused_tokens": total(lambda e: e.statistics.reused_tokens),
    }

  def warm_up(self) -> Iterator[Key]:
    """Compiles the programs of the lanes there are; yields each before."""
    for lane in self._lanes.values():
      yield from lane.engine.warm_up()

  def _name(self, job: Job) -> Name:
    mode = job.mode or self._default[0]
    own = self._default[1] if mode == self._default[0] else self._widths[mode]
    width = (
      own if job.block_length is None or mode == "ar" else job.block_length
    )
    return mode, width

  def _lane(self, name: Name) -> _Lane:
    """A lane, opened when it is first asked for."""
    if name not in self._lanes:
      self._lanes[name] = _Lane(name, self._open(name))
    lane = self._lanes[name]
    if lane.engine.idle:  # Time that it did not want is no claim.
      others = [x.seconds for x in self._lanes.values() if not x.engine.idle]
      lane.seconds = max(lane.seconds, min(others, default=lane.seconds))
    return lane

  def _event(self, lane: _Lane, step: Step) -> Event:
    made = step.generation
    output, reason, matched, counts = made.output, None, None, None
    scores, made.scores = made.scores, None
    if step.ended:
      self._requests.pop(made, None)
      reason, matched = output.result().finish_reason, output.matched
      counts = _counts(lane, made)
    event = Event(
      made,
      step.tokens,
      step.text,
      _last(output.logprobs, len(step.tokens)),
      scores.result() if scores is not None else None,
      reason,
      matched,
      counts,
      step.passes,
    )
    if made not in self._scored:
      return event
    self._scored.discard(made)
    return dataclasses.replace(
      event, token_ids=(), text="", logprobs=None, finish_reason="length",
      matched=None, passes=(),
    )  # fmt: skip


def _settings(job: Job) -> RowSettings:
  """The row with what the job says of its lane."""
  own: dict[str, Any] = {
    name: value
    for name in ("threshold", "steps_per_block", "draft_threshold")
    if (value := getattr(job, name)) is not None
  }
  if job.score_only:
    own["max_new_tokens"] = 1
  return dataclasses.replace(job.row, **own)


def _guide(job: Job, lane: _Lane) -> Guide | None:
  """What has a word in each pass of the job; None: nothing has."""
  words = [] if job.adjust is None else job.adjust.bad_words
  words = [w for w in words if len(w) > 1]  # The others are a bias.
  mode = lane.name[0]
  if mode == "diffusion" and (words or job.grammar is not None):
    raise UserError(
      "words of several tokens cannot be forbidden, nor forms be kept to, in"
      " diffusion; use another mode."
    )
  drafts = job.prediction if MODES[mode].speculative else ()
  if job.grammar is None and not words and not drafts:
    return None
  return Guide(lane.engine.vocab, job.grammar, words, drafts)


def _last(found: Logprobs | None, count: int) -> Logprobs | None:
  """Of the last `count` tokens."""
  if found is None:
    return None
  start = len(found.token) - count
  return Logprobs(found.token[start:], found.top_ids[start:], found.top[start:])


def _counts(lane: _Lane, made: Generation) -> Counts:
  output, engine = made.output, lane.engine
  cycles: Sequence[int] = output.accepted
  return Counts(
    nfe=output.nfe,
    mode=lane.name[0],
    block=engine.config.slots,
    cycles=len(cycles),
    accepted=sum(cycles) - len(cycles),
    drafted=made.drafted,
    places=[
      sum(found > place for found in cycles)  # The last token is no draft.
      for place in range(1, max(cycles, default=0))
    ],
    reused=made.request.reused,
    predicted=0 if made.guide is None else made.guide.predicted,
  )
