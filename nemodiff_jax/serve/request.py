"""A request as the scheduler sees it, and what a visit does."""

import dataclasses
import enum
from collections.abc import Sequence

import numpy as np


class Phase(enum.Enum):
  """Where a request is."""

  WAITING = "waiting"  # In the queue; preempted requests are there again.
  READING = "reading"  # Its prompt goes into its pages, chunk by chunk.
  RUNNING = "running"  # It has a slot.
  ENDED = "ended"


@dataclasses.dataclass(eq=False)
class Request:
  """What was asked for, and what the scheduler keeps of it.

  Attributes:
    prompt: token ids, at least one.
    max_new: tokens to generate at most.
    priority: lower ones go first; equal ones in order of arrival.
    salt: pages are shared only with requests of the same salt.
    reuse: leading tokens that cached pages may give, at most; None: any.
    watched: somebody waits for each token: its visits are short.
    ahead: its passes may be dispatched before those before are read; False
      where the host has a word in each (grammars): such a row runs in no visit
      before its first token is read.
    aligned: its cycles have as many passes as those of other rows (False
      with a draft_threshold).
    phase: where it is.
    arrival: its number, from 0.
    ids: the prompt and what was generated, as far as it was read.
    length: positions that passes have committed, as far as it was read; the
      prompt's, before.
    pages: that it holds, in order.
    read: leading positions that are in its pages before its passes begin.
    begun: its first pass has been planned: there is a state to go on from.
    mid: it is inside a cycle, as far as it was read.
    flying: passes that were planned and not read.
    slot: where it runs; -1: nowhere.
    reused: prompt tokens that cached pages gave.
    preemptions: how often its pages went to older requests.
  """

  prompt: Sequence[int]
  max_new: int
  priority: int = 0
  salt: str = ""
  reuse: int | None = None
  watched: bool = False
  ahead: bool = True
  aligned: bool = True
  phase: Phase = dataclasses.field(default=Phase.WAITING, init=False)
  arrival: int = dataclasses.field(default=-1, init=False)
  ids: list[int] = dataclasses.field(init=False)
  length: int = dataclasses.field(init=False)
  pages: list[int] = dataclasses.field(default_factory=list, init=False)
  read: int = dataclasses.field(default=0, init=False)
  begun: bool = dataclasses.field(default=False, init=False)
  mid: bool = dataclasses.field(default=False, init=False)
  flying: int = dataclasses.field(default=0, init=False)
  slot: int = dataclasses.field(default=-1, init=False)
  reused: int = dataclasses.field(default=0, init=False)
  preemptions: int = dataclasses.field(default=0, init=False)

  def __post_init__(self):
    self.ids = list(self.prompt)
    self.length = len(self.ids)

  @property
  def order(self) -> tuple[int, int]:
    """Smaller ones go first, and are preempted last."""
    return self.priority, self.arrival

  @property
  def runs(self) -> bool:
    """Whether it takes part in the visit that is planned next."""
    return self.ahead or not self.flying

  def limit(self, block: int) -> int:
    """No pass of the row writes at or behind this position."""
    return len(self.prompt) + self.max_new + block


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Positions of a row that one causal pass reads into its pages.

  Attributes:
    request: whose; the tokens are request.ids[start:stop].
    start: first position.
    stop: behind the last.
    pages: of the row.
    slot: where the row goes behind this chunk; None: more chunks follow.
    resumes: the state that was parked goes there, and nothing is begun or
      emitted; else the mode begins with the chunk's last token.
    redraft: the state was parked inside a cycle, perhaps of another width: it
      goes on with a draft to be made (only where widths are chosen).
  """

  request: Request
  start: int
  stop: int
  pages: tuple[int, ...]
  slot: int | None
  resumes: bool
  redraft: bool


@dataclasses.dataclass(frozen=True)
class Visit:
  """What the device does next, in this order.

  Slots from len(rows) to bucket hold nothing: what is there must neither run
  nor write.

  Attributes:
    parks: (slot, request): the state in the slot is kept aside.
    moves: (from, to): states of slots that change their place, all at once.
    chunks: of prompts, in order; the last of a row puts it into its slot.
    rows: the request in each slot.
    active: which of them run in this visit.
    pages: of each slot.
    bucket: slots that the passes run over.
    passes: at most; the loop may end early, between cycles.
    width: slots of the block that a pass uses.
  """

  parks: tuple[tuple[int, Request], ...]
  moves: tuple[tuple[int, int], ...]
  chunks: tuple[Chunk, ...]
  rows: tuple[Request, ...]
  active: tuple[bool, ...]
  pages: tuple[tuple[int, ...], ...]
  bucket: int
  passes: int
  width: int

  def running(self) -> list[tuple[int, Request]]:
    """(slot, request) of the rows that run."""
    pairs = enumerate(zip(self.rows, self.active, strict=True))
    return [(slot, row) for slot, (row, active) in pairs if active]

  @property
  def begun(self) -> frozenset[int]:
    """Slots whose row begins in this visit: it emits its first token."""
    return frozenset(
      c.slot for c in self.chunks if c.slot is not None and not c.resumes
    )

  def table(self, width: int, filler: int) -> np.ndarray:
    """The pages as an int32 array [bucket, width], filled up with `filler`."""
    out = np.full((self.bucket, width), filler, np.int32)
    for slot, pages in enumerate(self.pages):
      out[slot, : len(pages)] = pages
    return out


@dataclasses.dataclass(frozen=True)
class Progress:
  """What a visit did for one row.

  Attributes:
    tokens: that it emitted, the first one of a prompt included.
    length: positions committed behind it.
    ended: the device ended the row: a stop id, or max_new.
    mid: the row is inside a cycle.
    accepted: tokens of each cycle that ended (speculative modes).
  """

  tokens: Sequence[int]
  length: int
  ended: bool = False
  mid: bool = False
  accepted: Sequence[int] = ()
