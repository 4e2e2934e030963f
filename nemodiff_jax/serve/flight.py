"""A visit on its way: dispatched, and not read."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax

from nemodiff_jax.decode.state import Decoder
from nemodiff_jax.serve.device import Passed
from nemodiff_jax.serve.generation import Generation
from nemodiff_jax.serve.guiding import first_mask, make_guides
from nemodiff_jax.serve.request import Chunk, Request, Visit
from nemodiff_jax.serve.runner import Runner
from nemodiff_jax.serve.scores import PromptScores
from nemodiff_jax.serve.steps import Guides


@dataclasses.dataclass(frozen=True)
class Flight:
  """A visit that was dispatched and not read.

  Attributes:
    visit: with the request of each slot, as it was then.
    begun: what each prompt that was read to its end emitted, by slot.
    passed: what the passes did; None: there were none.
    scored: of chunks of prompts, whose they are and what was found.
    start: when it was dispatched, in seconds.
    first: whether its program ran for the first time, which takes longer.
  """

  visit: Visit
  begun: dict[int, Passed]
  passed: Passed | None
  scored: list[tuple[PromptScores, Chunk, Any]]
  start: float
  first: bool

  @property
  def passes(self) -> int:
    """Passes that ran; waits for them."""
    return 0 if self.passed is None else int(self.passed.count)

  def passes_since(self, read: float) -> float | None:
    """When the passes began, in seconds; None if nobody can tell.

    Behind the chunks of prompts: the host sees where the last of them began a
    row, if it looks before the passes have ended.

    Args:
      read: when the visit before had been read.
    """
    chunks = self.visit.chunks
    if not chunks:
      return max(self.start, read)
    slot = chunks[-1].slot
    begun = None if slot is None else self.begun.get(slot)
    if self.passed is None or begun is None:
      return None
    passes: Any = self.passed.count
    jax.block_until_ready(begun)
    now = time.perf_counter()
    return None if passes.is_ready() else now


def dispatch(
  runner: Runner,
  decoder: Decoder,
  visit: Visit,
  of: Mapping[Request, Generation],
) -> Flight:
  """Does what a visit says, in order; nothing waits for the device."""
  start, begun, scored = time.perf_counter(), {}, []
  for slot, request in visit.parks:
    of[request].parked = runner.park(slot)
  if visit.moves:
    runner.move(visit.moves)
  for chunk in visit.chunks:
    row = of[chunk.request]
    if row.scores is not None and row.scores.wants(chunk):
      scored.append((row.scores, chunk, runner.score(chunk)))
      if chunk.slot is not None:  # It is read; but for the last token again.
        chunk = dataclasses.replace(chunk, start=chunk.stop - 1)
    elif chunk.slot is None:
      runner.read(chunk)
    if chunk.slot is None:
      continue
    if row.parked is None:
      begun[chunk.slot] = _begin(runner, decoder, chunk, row, chunk.slot)
    else:
      runner.read(chunk)
      runner.resume(row.parked, chunk.slot, chunk.redraft)
      row.parked = None
  passed, first = None, False
  if any(visit.active):
    run = {slot: of[r] for slot, r in visit.running() if r in of}
    logprobs = any(g.settings.logprobs is not None for g in run.values())
    passed, first = runner.passes(
      visit,
      logprobs,
      _guides(decoder, visit, run),
      any(g.traced for g in run.values()),
    )
  return Flight(visit, begun, passed, scored, start, first)


def _begin(
  runner: Runner, decoder: Decoder, chunk: Chunk, row: Generation, slot: int
) -> Passed:
  own = row.adjust
  if own is not None:
    mask = first_mask(decoder, row.guide)
    own = dataclasses.replace(own, mask=mask)
  return runner.begin(chunk, row.settings, slot, own)


def _guides(
  decoder: Decoder, visit: Visit, run: Mapping[int, Generation]
) -> Guides | None:
  """What the host says of the first pass; None: no row changes its logits."""
  if all(g.adjust is None for g in run.values()):
    return None
  guided = {s: g.guide for s, g in run.items() if g.guide is not None}
  return make_guides(decoder, visit.bucket, visit.width, guided)
