"""Log-probabilities of a prompt's own tokens, chunk by chunk."""

import dataclasses

import numpy as np

from nemodiff_jax.decode.results import Logprobs
from nemodiff_jax.decode.state import Picked
from nemodiff_jax.serve.request import Chunk


@dataclasses.dataclass
class PromptScores:
  """What is known of a prompt.

  Attributes:
    start: first token that is asked for.
    top: how many of the likeliest are told in its place.
    length: of the prompt.
  """

  start: int
  top: int
  length: int

  def __post_init__(self):
    self._found: dict[int, tuple[float, list[int], list[float]]] = {}

  def wants(self, chunk: Chunk) -> bool:
    """Whether the chunk reads a token whose next one is asked for."""
    first = max(self.start, 1)
    return chunk.stop >= first and len(self._found) < self.length - first

  def add(self, chunk: Chunk, scored: Picked) -> None:
    """Takes what `Runner.score` made of a chunk, copied to the host."""
    count = chunk.stop - chunk.start
    values, ids, tops = (
      np.asarray(x)[0, -count:]
      for x in (scored.logprob, scored.top_ids, scored.top_logprobs)
    )
    for i in range(count):
      at = chunk.start + i + 1
      if max(self.start, 1) <= at < self.length:
        top = slice(self.top)
        self._found[at] = (
          float(values[i]), ids[i, top].tolist(), tops[i, top].tolist()
        )  # fmt: skip

  def result(self) -> Logprobs:
    """Of the tokens from `start` on; the first of a prompt has none."""
    out = Logprobs([], [], [])
    for at in range(self.start, self.length):
      value, ids, tops = self._found.get(at, (None, [], []))
      out.token.append(value)
      out.top_ids.append(ids)
      out.top.append(tops)
    return out
