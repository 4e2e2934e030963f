"""What the server asks of the engine, and what the engine tells it."""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol

from nemodiff_jax.decode.config import RowSettings
from nemodiff_jax.decode.results import Logprobs


@dataclasses.dataclass(frozen=True)
class Adjustments:
  """Changes to the logits of a row, before temperature and filters.

  Attributes:
    logit_bias: added to the logits of these ids.
    presence_penalty: taken from ids that the output holds.
    frequency_penalty: taken from them as often as the output holds them.
    repetition_penalty: divides (multiplies, below 0) the logits of ids that
      the prompt or the output hold.
    allowed_token_ids: no others are said; None: all may be.
    bad_words: sequences of ids that are not said.
    min_tokens: no EOS and no stop id before so many tokens.
  """

  logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
  presence_penalty: float = 0.0
  frequency_penalty: float = 0.0
  repetition_penalty: float = 1.0
  allowed_token_ids: Sequence[int] | None = None
  bad_words: Sequence[Sequence[int]] = ()
  min_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Job:
  """One row for the engine.

  Attributes:
    prompt: checked ids.
    row: its settings.
    score_only: no token is wanted, only log-probabilities of the prompt.
    prompt_logprobs: (first position, likeliest) of the prompt's own; or None.
    adjust: changes to the logits; None: none.
    grammar: of `structured.py`, a fresh matcher for this row; None: free.
    prediction: ids that the output is expected to hold.
    mode: a lane; None: the engine's own mode.
    block_length: width of a block, 'auto', or None: the lane's own.
    threshold: as in DecodeConfig; None: the lane's own.
    steps_per_block: as in DecodeConfig; None: the lane's own.
    draft_threshold: as in DecodeConfig; None: the lane's own.
    stream: somebody reads the text as it comes.
    passes: events tell what each pass did.
    priority: lower goes first; then the order of arrival.
    cache_salt: only requests of the same salt share prefixes.
  """

  prompt: Sequence[int]
  row: RowSettings
  score_only: bool = False
  prompt_logprobs: tuple[int, int] | None = None
  adjust: Adjustments | None = None
  grammar: Any = None
  prediction: Sequence[int] = ()
  mode: str | None = None
  block_length: int | str | None = None
  threshold: float | None = None
  steps_per_block: int | None = None
  draft_threshold: float | None = None
  stream: bool = False
  passes: bool = False
  priority: int = 0
  cache_salt: str = ""


@dataclasses.dataclass(frozen=True)
class Counts:
  """What a row took, told when it ends.

  Attributes:
    nfe: forward passes.
    mode: that the row was decoded in.
    block: width of its blocks.
    cycles: drafts that were verified.
    accepted: draft tokens that the verifier accepted.
    drafted: draft tokens that it looked at.
    places: of the accepted ones, how many stood first in a draft, second, ...
    reused: tokens of the prompt that the prefix cache held.
    predicted: accepted tokens that came of the request's prediction.
  """

  nfe: int = 0
  mode: str = "ar"
  block: int = 1
  cycles: int = 0
  accepted: int = 0
  drafted: int = 0
  places: Sequence[int] = ()
  reused: int = 0
  predicted: int = 0


@dataclasses.dataclass(frozen=True)
class Event:
  """What happened to a request during a step.

  Attributes:
    request: what `submit` returned.
    token_ids: new tokens, an ending EOS or stop id included.
    text: new text, certain; without a stop string.
    logprobs: of the new tokens, where asked for.
    prompt_logprobs: of the prompt, once, where asked for.
    finish_reason: 'stop' or 'length' with the last event ('abort': of the
      server, never of the engine).
    matched: the stop id or text that ended it; None for an EOS.
    counts: with the last event.
    passes: of the step, where asked for: see `decode.trace.entry`.
  """

  request: Hashable
  token_ids: Sequence[int] = ()
  text: str = ""
  logprobs: Logprobs | None = None
  prompt_logprobs: Logprobs | None = None
  finish_reason: str | None = None
  matched: int | str | None = None
  counts: Counts | None = None
  passes: Sequence[Mapping[str, Any]] = ()


class Engine(Protocol):
  """Many requests at once; no threads, no waiting.

  Attributes:
    features: what of a Job it serves beyond prompt and row: names of fields.
  """

  features: frozenset[str]

  def submit(self, job: Job) -> Hashable:
    """Queues a job; raises QueueFull, or a UserError for what cannot be."""
    ...

  def step(self) -> Sequence[Event]:
    """One visit: what became of the requests."""
    ...

  def busy(self) -> bool:
    """Whether a step would do anything."""
    ...

  def cancel(self, request: Any) -> None:
    """Ends a request, if it has not ended; no event tells of it."""
    ...

  def flush(self) -> bool:
    """Empties the prefix cache; False while requests run."""
    ...

  def statistics(self) -> Mapping[str, float]:
    """Figures by name: running, waiting, pages, pages_used, ..."""
    ...
