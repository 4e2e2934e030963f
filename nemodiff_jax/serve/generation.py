"""A request of an engine, its output as it grows, and what is told of it."""

import dataclasses
from collections.abc import Collection

from nemodiff_jax.decode.adjust import Adjust
from nemodiff_jax.decode.config import RowSettings
from nemodiff_jax.decode.results import RowOutput
from nemodiff_jax.decode.state import RUNNING, STOPPED
from nemodiff_jax.serve.guide import Guide
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

  def follow(
    self, tokens: list[int], cycle: int, ends: Collection[int]
  ) -> bool:
    """Tells the guide of new tokens; whether its grammar is at its end.

    `ends` are the model's EOS ids: with ignore_eos the row would run on,
    though nothing can follow.
    """
    guide, output = self.guide, self.output
    if guide is None:
      return False
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
  """

  generation: Generation
  tokens: list[int]
  text: str
  ended: bool
