"""Many requests at once: each gets exactly the tokens it would get alone.

No HTTP, no threads: `step` plans a visit, dispatches it behind the last one,
and reads what the visit before did.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Iterator, Sequence

import jax

from nemodiff_jax.decode.config import (
  DecodeConfig,
  RowSettings,
  check_mode,
)
from nemodiff_jax.decode.results import RowOutput
from nemodiff_jax.decode.state import (
  RUNNING,
  Decoder,
  DecodeState,
  Emitted,
  Weights,
)
from nemodiff_jax.errors import UserError
from nemodiff_jax.serve.chunks import ChunkSizes
from nemodiff_jax.serve.device import PASSES, Passed
from nemodiff_jax.serve.pages import PagePool
from nemodiff_jax.serve.request import Phase, Progress, Request, Visit
from nemodiff_jax.serve.runner import Runner
from nemodiff_jax.serve.scheduler import Scheduler
from nemodiff_jax.serve.statistics import Statistics
from nemodiff_jax.serve.widths import Widths
from nemodiff_jax.text.stream import TextStream
from nemodiff_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(eq=False)
class Generation:
  """A request, and its output as it grows.

  Attributes:
    request: what the scheduler knows of it.
    settings: of the row.
    output: so far.
    ended: nothing more will come.
    parked: its state, while its pages are others'.
  """

  request: Request
  settings: RowSettings
  output: RowOutput
  ended: bool = False
  parked: DecodeState | None = None


@dataclasses.dataclass(frozen=True)
class Event:
  """What came of a request in a visit.

  Attributes:
    generation: whose.
    tokens: that are new.
    text: that is new and certain; '' where the request has no text stream.
    ended: nothing more will come.
  """

  generation: Generation
  tokens: list[int]
  text: str
  ended: bool


@dataclasses.dataclass(frozen=True)
class _Flight:
  """A visit that was dispatched and not read.

  Attributes:
    visit: with the request of each slot, as it was then.
    begun: what each prompt that was read to its end emitted, by slot.
    passed: what the passes did; None: there were none.
    start: when it was dispatched, in seconds.
    first: whether its program ran for the first time, which takes longer.
  """

  visit: Visit
  begun: dict[int, Passed]
  passed: Passed | None
  start: float
  first: bool


class Engine:
  """Decodes requests that come and go; every row in one mode.

  Attributes:
    config: how rows decode that say nothing else.
    statistics: what has been done so far.
    pool: the pages.
    scheduler: who waits, who runs.
  """

  def __init__(
    self,
    decoder: Decoder,
    weights: Weights,
    config: DecodeConfig,
    *,
    rows: int,
    pages: int,
    max_length: int,
    stop_ids: int = 16,
    queue: int = 1024,
    widths: Widths | None = None,
    tokenizer: Tokenizer | None = None,
  ):
    """Takes the memory of the pool; compiles nothing yet.

    Args:
      decoder: static part; what its `logprobs` say, rows may ask for at most.
      weights: parameters, and the drafter.
      config: how to decode.
      rows: that run at once.
      pages: of the cache pool.
      max_length: of prompt + max_new_tokens.
      stop_ids: of a row, at most.
      queue: requests that may wait.
      widths: chooses the width of each cycle; None: always the block's.
      tokenizer: for texts and stop strings.

    Raises:
      UserError: a size below 1.
    """
    self.config = config
    self.statistics = Statistics(decoder.block)
    self._decoder = decoder
    self._tokenizer = tokenizer
    self.pool = PagePool(pages)
    self._widths = widths
    cycle = len(decoder.mode.phases)
    self.scheduler = Scheduler(
      self.pool, rows, block=decoder.block, cycle=cycle, queue=queue,
      passes=PASSES, widths=self._widths,
    )  # fmt: skip
    self._runner = Runner(
      decoder, weights, config, rows=rows, pages=pages,
      max_length=max_length, stop_ids=stop_ids,
    )  # fmt: skip
    self._chunks = ChunkSizes(decoder.mode.masks(decoder.block), cycle)
    self._generations: dict[Request, Generation] = {}
    self._flights: deque[_Flight] = deque()
    self._read_at = 0.0

  def submit(
    self,
    prompt: Sequence[int],
    settings: RowSettings,
    *,
    priority: int = 0,
    salt: str = "",
    stream: bool = False,
  ) -> Generation:
    """Lets a checked prompt wait for its turn.

    Args:
      prompt: token ids.
      settings: of the row.
      priority: lower ones go first.
      salt: only prompts of the same salt share pages.
      stream: somebody reads the text as it comes, so visits are short.

    Raises:
      QueueFull: too many wait.
      UserError: the pool is too small for it, or the mode has no such setting.
    """
    check_mode(self.config, settings)
    text = None
    if stream or settings.stop:
      if self._tokenizer is None:
        raise UserError("stop strings and texts need a tokenizer.")
      text = TextStream(self._tokenizer, settings.stop)
    request = Request(
      prompt,
      settings.max_new_tokens,
      priority=priority,
      salt=salt,
      watched=stream,
      aligned=not settings.draft_threshold,
    )
    self.scheduler.submit(request)
    speculative = self._decoder.mode.speculative
    output = RowOutput(settings, speculative, text)
    made = Generation(request, settings, output)
    self._generations[request] = made
    return made

  def cancel(self, generation: Generation) -> bool:
    """Ends a request; False if it had ended. It keeps what it has."""
    if not self.scheduler.end(generation.request):
      return False
    self._finish(generation)
    return True

  @property
  def idle(self) -> bool:
    """Whether there is nothing to do or to read."""
    return not (self._generations or self._flights)

  def step(self) -> list[Event]:
    """Dispatches the next visit, and reads the one before it."""
    watched = any(m.request.watched for m in self._generations.values())
    self.scheduler.chunk = self._chunks.tokens(watched)
    visit = self.scheduler.plan()
    if visit is not None:
      self._flights.append(self._dispatch(visit))
    if len(self._flights) > (visit is not None):
      return self._read(self._flights.popleft())
    return []

  def run(self) -> Iterator[Event]:
    """Steps until nothing is left to do."""
    while not self.idle:
      yield from self.step()

  def _dispatch(self, visit: Visit) -> _Flight:
    start, runner, begun = time.perf_counter(), self._runner, {}
    of = self._generations
    for slot, request in visit.parks:
      of[request].parked = runner.park(slot)
    if visit.moves:
      runner.move(visit.moves)
    for chunk in visit.chunks:
      row = of[chunk.request]
      if chunk.slot is None:
        runner.read(chunk)
      elif row.parked is None:
        begun[chunk.slot] = runner.begin(chunk, row.settings, chunk.slot)
      else:
        runner.read(chunk)
        runner.resume(row.parked, chunk.slot, chunk.redraft)
        row.parked = None
    passed, first = None, False
    if any(visit.active):
      asked = (of[r].settings for r in visit.rows if r in of)
      logprobs = any(s.logprobs is not None for s in asked)
      passed, first = runner.passes(visit, logprobs)
    return _Flight(visit, begun, passed, start, first)

  def _read(self, flight: _Flight) -> list[Event]:
    """Copies what a visit did to the host, and hands it to its requests."""
    begun, passed = jax.device_get((flight.begun, flight.passed))
    self._observe(flight)
    progress = [
      _progress(begun.get(slot), passed, slot)
      for slot in range(len(flight.visit.rows))
    ]
    events = []
    for slot, request in self.scheduler.read(flight.visit, progress):
      made = self._generations[request]
      output, shown = made.output, made.output.text
      before = len(output.token_ids)
      for part in _parts(begun.get(slot), passed, slot):
        if output.add(*part):
          self.scheduler.end(request)
          break
      ended = request.phase is Phase.ENDED
      tokens = output.token_ids[before:]
      events.append(Event(made, tokens, output.text[len(shown) :], ended))
      self.statistics.add(tokens, progress[slot].accepted)
      if ended:
        self._finish(made)
    return events

  def _finish(self, made: Generation) -> None:
    del self._generations[made.request]
    made.ended, made.parked = True, None
    self.statistics.end(made)

  def _observe(self, flight: _Flight) -> None:
    """Learns from how long a visit took, from the end of the one before."""
    now = time.perf_counter()
    seconds = now - max(flight.start, self._read_at)
    self._read_at = now
    visit = flight.visit
    count = 0 if flight.passed is None else int(flight.passed.count)
    self.statistics.visit(count, seconds)
    if not flight.first:
      self._chunks.observe(visit, count, seconds)
    timed = count and not visit.chunks and not flight.first
    if self._widths is not None and timed:
      self._widths.observe_time(visit.bucket, visit.width, seconds, count)


def _parts(
  begun: Passed | None, passed: Passed | None, slot: int
) -> Iterator[tuple[Emitted, int, int, int]]:
  """The passes in which a row ran: what was emitted, its place, nfe, status."""
  running = True
  for part, row in ((begun, 0), (passed, slot)):
    if part is None or not running:
      continue
    for i in range(int(part.count)):
      emitted = jax.tree.map(lambda x, i=i: x[i], part.emitted)
      status = int(part.status[i, row])
      yield emitted, row, int(part.nfe[i, row]), status
      running = status == RUNNING


def _progress(
  begun: Passed | None, passed: Passed | None, slot: int
) -> Progress:
  """What a visit did for the row in a slot, for the scheduler."""
  tokens, accepted, ended = [], [], False
  for emitted, row, _, status in _parts(begun, passed, slot):
    ended = status != RUNNING
    tokens += emitted.picked.token[row, : emitted.count[row]].tolist()
    if emitted.cycle[row]:
      accepted.append(int(emitted.cycle[row]))
  last, row = (begun, 0) if passed is None else (passed, slot)
  if last is None:
    return Progress((), 0)
  return Progress(
    tokens=tokens,
    length=int(last.lengths[row]),
    ended=ended,
    mid=bool(last.middle[row]),
    accepted=accepted,
  )
