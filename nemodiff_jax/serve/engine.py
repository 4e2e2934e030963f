"""Many requests at once: each gets exactly the tokens it would get alone.

No HTTP, no threads: `step` plans a visit, dispatches it behind the last one,
and reads what the visit before did.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax

from nemodiff_jax.decode.config import DecodeConfig, RowSettings, check_mode
from nemodiff_jax.decode.results import RowOutput
from nemodiff_jax.decode.state import Decoder, Weights
from nemodiff_jax.errors import UserError
from nemodiff_jax.serve.adjusting import adjust_row
from nemodiff_jax.serve.cache import Cache
from nemodiff_jax.serve.chunks import ChunkSizes, short
from nemodiff_jax.serve.contract import Adjustments
from nemodiff_jax.serve.device import PASSES
from nemodiff_jax.serve.flight import Flight, dispatch
from nemodiff_jax.serve.generation import Event, Generation
from nemodiff_jax.serve.guide import Guide
from nemodiff_jax.serve.observing import Observer
from nemodiff_jax.serve.preparing import Preparing
from nemodiff_jax.serve.programs import Key
from nemodiff_jax.serve.queue import QueueFull
from nemodiff_jax.serve.readout import last_of, parts, progress_of, told
from nemodiff_jax.serve.request import Phase, Request
from nemodiff_jax.serve.runner import Runner
from nemodiff_jax.serve.scheduler import Scheduler
from nemodiff_jax.serve.scores import PromptScores
from nemodiff_jax.serve.statistics import Statistics
from nemodiff_jax.serve.watching import watched
from nemodiff_jax.serve.widths import Widths
from nemodiff_jax.text.stream import TextStream
from nemodiff_jax.text.tokenizer import Tokenizer

STOP_IDS = 16


class Engine:
  """Decodes requests that come and go; every row in one mode.

  Attributes:
    config: how rows decode that say nothing else.
    statistics: what has been done so far.
    cache: its pages.
    scheduler: who waits, who runs.
  """

  def __init__(
    self,
    decoder: Decoder,
    weights: Weights,
    config: DecodeConfig,
    cache: Cache,
    *,
    rows: int,
    max_length: int,
    stop_ids: int = STOP_IDS,
    queue: int = 1024,
    widths: Widths | None = None,
    tokenizer: Tokenizer | None = None,
  ):
    """Compiles nothing yet.

    Args:
      decoder: static part; what its `logprobs` say, rows may ask for at most.
      weights: parameters, and the drafter.
      config: how to decode.
      cache: the pages, maybe shared with other engines of the model.
      rows: that run at once.
      max_length: of prompt + max_new_tokens.
      stop_ids: of a row, at most.
      queue: requests that may wait.
      widths: chooses the width of each cycle, where config.widths has some.
      tokenizer: for texts and stop strings.
    """
    self.config = config
    self.statistics = Statistics(decoder.block)
    self._decoder = decoder
    self._tokenizer = tokenizer
    self.cache = cache
    self._stop_ids = stop_ids
    cycle = len(decoder.mode.phases)
    masks = decoder.mode.masks(decoder.block)
    self.scheduler = Scheduler(
      cache.pages, rows, block=decoder.block, cycle=cycle, queue=queue,
      short=short(masks), passes=PASSES, widths=widths,
    )  # fmt: skip
    self._runner = Runner(
      decoder, weights, config, cache,
      rows=rows, max_length=max_length, stop_ids=stop_ids,
    )  # fmt: skip
    self._sizes = config.widths or (decoder.block,)
    self._generations: dict[Request, Generation] = {}
    self._chunks = ChunkSizes(masks, cycle)
    self._observer = Observer(self.statistics, self._chunks, widths)
    self._preparing = Preparing(self._runner.programs, rows, self._sizes, masks)
    self._flights: deque[Flight] = deque()

  def submit(
    self,
    prompt: Sequence[int],
    settings: RowSettings,
    *,
    priority: int = 0,
    salt: str = "",
    stream: bool = False,
    texts: bool = False,
    changes: Adjustments | None = None,
    guide: Guide | None = None,
    scores: tuple[int, int] | None = None,
    traced: bool = False,
    prepare: bool = False,
  ) -> Generation:
    """Lets a checked prompt wait for its turn.

    Args:
      prompt: token ids.
      settings: of the row.
      priority: lower ones go first.
      salt: only prompts of the same salt share pages.
      stream: somebody reads the text as it comes, so visits are short.
      texts: events have the text that is new, streamed or not.
      changes: of the logits; None: none.
      guide: has a word in each pass (grammar, prediction); None: nobody has.
      scores: (first token, likeliest) of the prompt's own log-probabilities;
        None: none.
      traced: events tell its passes.
      prepare: what it needs is compiled by another thread, before its turn.

    Raises:
      QueueFull: too many wait.
      UserError: the pool is too small for it, or the mode has no such setting.
    """
    check_mode(self.config, settings)
    own = len(settings.stop_token_ids)
    ends = self._decoder.module.config.eos_ids
    if own + len(ends) > self._stop_ids:
      raise UserError(
        f"stop_token_ids should be at most {self._stop_ids - len(ends)}, got"
        f" {own}."
      )
    text = None
    if self._tokenizer is not None and (stream or texts or settings.stop):
      text = TextStream(self._tokenizer, settings.stop)
    elif settings.stop:
      raise UserError("stop strings need a tokenizer; use stop_token_ids.")
    request = Request(
      prompt,
      settings.max_new_tokens,
      priority=priority,
      salt=salt,
      watched=stream,
      aligned=not settings.draft_threshold and guide is None,
      ahead=guide is None,
      reuse=None if scores is None else max(scores[0] - 1, 0),
    )
    queue = self.scheduler.queue
    if len(queue) + len(self._preparing) >= queue.limit:
      raise QueueFull(len(queue) + len(self._preparing), queue.limit)
    self.scheduler.submit(request)
    speculative = self._decoder.mode.speculative
    output = RowOutput(settings, speculative, text)
    made = Generation(request, settings, output, guide=guide, traced=traced)
    if changes is not None or guide is not None:
      changes = changes or Adjustments()
      made.adjust = adjust_row(self.vocab, prompt, changes)
    if scores is not None:
      made.scores = PromptScores(*scores, len(prompt))
    self._generations[request] = made
    most = self._chunk_size()
    others = self._generations.values()
    if prepare and self._preparing.add(made, others, self.cache.pages, most):
      queue.remove(request)
    return made

  def cancel(self, generation: Generation) -> bool:
    """Ends a request; False if it had ended. It keeps what it has."""
    request = generation.request
    if self._preparing.remove(request):
      self.scheduler.queue.restore(request)
    if not self.scheduler.end(request):
      return False
    self._finish(generation)
    return True

  @property
  def idle(self) -> bool:
    """Whether there is nothing to do or to read."""
    return not (self._generations or self._flights)

  @property
  def preparing(self) -> int:
    """Requests that wait for programs."""
    return len(self._preparing)

  @property
  def flying(self) -> int:
    """Visits that were dispatched and not read."""
    return len(self._flights)

  def step(self) -> list[Event]:
    """Dispatches the next visit, and reads the one before it."""
    for request in self._preparing.ready():
      self.scheduler.queue.restore(request)
    self.scheduler.chunk = self._chunk_size()
    visit = self.scheduler.plan(self._ready)
    if visit is not None:
      self._flights.append(
        dispatch(self._runner, self._decoder, visit, self._generations)
      )
    if len(self._flights) > (visit is not None):
      return self._read(self._flights.popleft())
    return []

  def warm_up(self, seal: bool = False) -> Iterator[Key]:
    """Compiles every program that may be needed; yields them before.

    Args:
      seal: nothing may be compiled afterwards, which tests make sure of.
    """
    for key in self._runner.keys(self._sizes):
      yield key
      self._runner.programs.get(key)
    self._runner.programs.sealed = seal

  @property
  def vocab(self) -> int:
    """Ids that logits are for."""
    return self._decoder.module.config.vocab_size

  @property
  def programs(self) -> int:
    """Programs that were compiled."""
    return len(self._runner.programs)

  def _chunk_size(self) -> int:
    """Prompt tokens that the next visit may read."""
    return self._chunks.tokens(self.scheduler.watched, self.scheduler.unread)

  def _ready(self, count: int) -> tuple[int, Collection[int]]:
    """See `Preparing.choose`."""
    held = [self._generations[r] for r in self.scheduler.held]
    everybody = self._generations.values()
    return self._preparing.choose(count, held, everybody, self.statistics)

  def _read(self, flight: Flight) -> list[Event]:
    """Copies what a visit did to the host, and hands it to its requests."""
    since = self._observer.passes_since(flight)
    scored = [found for _, _, found in flight.scored]
    started, passed, scored = jax.device_get(
      (flight.begun, flight.passed, scored)
    )
    begun = {slot: told(x) for slot, x in started.items()}
    done = None if passed is None else told(passed)
    self._observer.time(flight, since)
    for (scores, chunk, _), found in zip(flight.scored, scored, strict=True):
      scores.add(chunk, found)
    ran = [done if active else None for active in flight.visit.active]
    did = [parts(begun.get(i), x, i) for i, x in enumerate(ran)]
    last = [last_of(begun.get(i), x, i) for i, x in enumerate(ran)]
    progress = [progress_of(*x) for x in zip(did, last, strict=True)]
    events, ends = [], self._decoder.module.config.eos_ids
    for slot, request in self.scheduler.read(flight.visit, progress):
      made = self._generations[request]
      output, shown = made.output, made.output.text
      before = len(output.token_ids)
      if made.take(did[slot], last[slot], ends):
        self.scheduler.end(request)
      ended = request.phase is Phase.ENDED
      tokens = output.token_ids[before:]
      seen: list[dict[str, Any]] = []
      if made.traced:
        mode = self._decoder.mode
        seen = watched(mode, begun.get(slot), ran[slot], slot, tokens)
      new = output.text[len(shown) :]
      events.append(Event(made, tokens, new, ended, seen))
      cycles = progress[slot].accepted
      made.drafted += len(cycles) * (flight.visit.width - 1)
      self.statistics.add(tokens, cycles)
      if ended:
        self._finish(made)
    self._observer.tokens(flight, sum(len(e.tokens) for e in events))
    return events

  def _finish(self, made: Generation) -> None:
    del self._generations[made.request]
    made.ended, made.parked = True, None
    self.statistics.end(made)
