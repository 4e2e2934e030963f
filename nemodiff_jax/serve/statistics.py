"""What an engine has done so far, in numbers."""

from collections.abc import Sequence

from nemodiff_jax.serve.generation import Generation


class Statistics:
  """Sums since the start of an engine.

  Attributes:
    requests: that ended.
    prompt_tokens: of these.
    reused_tokens: of these prompts, found in the prefix cache.
    tokens: generated.
    nfe: forward passes of the rows that ended.
    visits: of the device.
    passes: of the model, prompts not included.
    seconds: that visits took.
    slots: how often each slot of a draft was accepted, by slot.
    cycles: verifications of drafts.
  """

  def __init__(self, block: int):
    self.requests = 0
    self.prompt_tokens = 0
    self.reused_tokens = 0
    self.tokens = 0
    self.nfe = 0
    self.visits = 0
    self.passes = 0
    self.seconds = 0.0
    self.slots = [0] * block
    self.cycles = 0

  def visit(self, passes: int, seconds: float) -> None:
    """Counts a visit."""
    self.visits += 1
    self.passes += passes
    self.seconds += seconds

  def add(self, tokens: Sequence[int], accepted: Sequence[int]) -> None:
    """Counts what a visit did for a row."""
    self.tokens += len(tokens)
    self.cycles += len(accepted)
    for count in accepted:
      for slot in range(count):
        self.slots[slot] += 1

  def end(self, made: Generation) -> None:
    """Counts a request that has ended."""
    self.requests += 1
    self.prompt_tokens += len(made.request.prompt)
    self.reused_tokens += made.request.reused
    self.nfe += made.output.nfe

  @property
  def acceptance(self) -> list[float]:
    """Of each slot of a draft, the share of cycles that accepted it."""
    return [count / max(self.cycles, 1) for count in self.slots]
