"""A request of an engine, its output as it grows, and what is told of it."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from nemodiff_jax.decode.adjust import Adjust
from nemodiff_jax.decode.config import RowSettings
from nemodiff_jax.decode.results import RowOutput
from nemodiff_jax.decode.state import RUNNING, STOPPED
from nemodiff_jax.serve.device import Passed
from nemodiff_jax.serve.guide import Guide
from nemodiff_jax.serve.readout import Part, block_of
from nemodiff_jax.serve.request import Request
from nemodiff_jax.serve.runner import Parked
from nemodiff_jax.serve.scores import PromptScores


@dataclasses.dataclass(eq=False)
class Generation:
  """A request, and its output as it grows.

  Attributes:
    request: what the scheduler knows of it.
    settings: of the row.
    output: so far.
    ended: nothing more will come.
    parked: its state, while its pages are others'.
    drafted: draft tokens that were verified.
    adjust: how it changes its logits; None: not at all.
    guide: what the host says of each of its passes; None: nothing.
    scores: of its prompt's tokens, where asked for.
    traced: somebody watches its passes.
  """

  request: Request
  settings: RowSettings
  output: RowOutput
  ended: bool = False
  parked: Parked | None = None
  drafted: int = 0
  adjust: Adjust | None = None
  guide: Guide | None = None
  scores: PromptScores | None = None
  traced: bool = False

  def take(
    self,
    did: Sequence[Part],
    last: tuple[Passed, int] | None,
    ends: Collection[int],
  ) -> bool:
    """Takes what a visit did for the row; True: the host has ended it.

    Args:
      did: from `readout.parts`.
      last: from `readout.last_of`.
      ends: the model's EOS ids.
    """
    for part in did:
      said = len(self.output.token_ids)
      hit = self.output.add(*part)
      if self.guide is not None:
        cycle = int(part[0].cycle[part[1]])
        hit |= self._follow(self.guide, said, cycle, ends)
      if hit:
        return True
    if self.guide is not None:
      self.guide.block, self.guide.phase = block_of(last)
    return False

  def _follow(
    self, guide: Guide, said: int, cycle: int, ends: Collection[int]
  ) -> bool:
    """Tells the guide of tokens from `said` on; whether its grammar has ended.

    With ignore_eos the row would run on, though nothing can follow.
    """
    output = self.output
    tokens = output.token_ids[said:]
    guide.accept(tokens, cycle)
    last = tokens[-1] if tokens else None
    if guide.closed and last in ends and output.status == RUNNING:
      output.status = STOPPED
      return True
    return False


@dataclasses.dataclass(frozen=True)
class Event:
  """What came of a request in a visit.

  Attributes:
    generation: whose.
    tokens: that are new.
    text: that is new and certain; '' where the request has no text stream.
    ended: nothing more will come.
    passes: of the visit, where somebody watches them: see `decode.trace`.
  """

  generation: Generation
  tokens: list[int]
  text: str
  ended: bool
  passes: Sequence[dict[str, Any]] = ()
