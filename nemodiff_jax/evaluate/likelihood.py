"""How likely a text is: exactly, by the ar head; or bounded, by diffusion.

    ar     sum over i of log p(x_i | x_<i)
    bound  sum over blocks of  E[ C / l  sum over masked i of
                                  log p(x_i | the rest of the block, prefix) ]

with l uniform in 1..C and the l masked slots a random set. The expectation is
at most the log-likelihood of decoding the block slot by slot in a random order,
and equal to it where the model's answers fit together. It is estimated with
seeded samples.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from nemodiff_jax.api import Model
from nemodiff_jax.errors import UserError
from nemodiff_jax.evaluate.forward import Text, read

# [S, C] which slots are masked -> [S, C] log-probability of the true tokens.
Predict = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Scored:
  """A continuation, scored by the ar head.

  Attributes:
    logprobs: of each of its tokens.
    greedy: whether greedy decoding would say just that.
  """

  logprobs: list[float]
  greedy: bool

  @property
  def total(self) -> float:
    """Log-probability of the continuation."""
    return math.fsum(self.logprobs)


@dataclasses.dataclass(frozen=True)
class Bound:
  """A lower bound of a log-likelihood, estimated.

  Attributes:
    mean: the estimate.
    error: its standard error.
  """

  mean: float
  error: float


def score_ar(
  model: Model,
  pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
  batch_size: int,
) -> list[Scored]:
  """Exact log-probabilities of continuations.

  What does not fit into the model is cut off at the left.

  Args:
    model: from `load`.
    pairs: (context, continuation), ids; a context holds at least one.
    batch_size: rows at a time.

  Raises:
    UserError: an empty context, or a continuation that leaves no room for one.
  """
  texts, most = [], model.config.max_positions
  for context, continuation in pairs:
    if not len(context):
      raise UserError("a context should hold at least one token (BOS).")
    if len(continuation) > most:
      raise UserError(
        f"a continuation of {len(continuation)} tokens does not fit into"
        f" {most} positions; score it in windows."
      )
    whole = [*context, *continuation][-(most + 1) :]
    n = len(whole) - len(continuation)
    at = range(n - 1, len(whole) - 1)
    # The last token is predicted, never read.
    texts.append(Text(whole[:-1] or whole, len(whole), at, continuation))
  order = sorted(range(len(texts)), key=lambda i: len(texts[i].tokens))
  found: dict[int, Scored] = {}
  reads = read(model, [texts[i] for i in order], batch_size)
  for i, r in zip(order, reads, strict=True):
    same = bool((r.token == np.asarray(texts[i].target)).all())
    found[i] = Scored([float(x) for x in r.logprob], same)
  return [found[i] for i in range(len(texts))]


def bound(
  model: Model,
  context: Sequence[int],
  continuation: Sequence[int],
  *,
  block_length: int | None = None,
  samples: int = 128,
  seed: int = 0,
  batch_size: int = 8,
) -> Bound:
  """The block diffusion bound of log p(continuation | context).

  Blocks begin at the end of the context; slots behind the end of the last one
  are masked, as in decoding, and not scored.

  Raises:
    UserError: a model without a mask id, or more positions than it has.
  """
  size, mask = block_length or model.config.block_size, model.config.mask_id
  if mask is None:
    raise UserError("the bound needs a mask id; this checkpoint has none.")
  end = len(context) + math.ceil(len(continuation) / size) * size
  if end > model.config.max_positions:
    raise UserError(
      f"{end} positions are needed, the model has {model.config.max_positions}."
    )
  parts = []
  for begin in range(0, len(continuation), size):
    prefix = [*context, *continuation[:begin]]
    true = list(continuation[begin : begin + size])

    def predict(
      masked: np.ndarray, prefix=prefix, true=true, mask=mask
    ) -> np.ndarray:
      n, start = len(true), len(prefix)
      at = range(start, start + n)
      texts = [
        Text(
          [*prefix, *np.where(m, mask, true).tolist(), *[mask] * (size - n)],
          start, at, true,
        )
        for m in masked
      ]  # fmt: skip
      return np.stack([r.logprob for r in read(model, texts, batch_size)])

    parts.append(block_bound(predict, len(true), samples, (seed, begin)))
  return Bound(
    math.fsum(p.mean for p in parts),
    math.sqrt(math.fsum(p.error**2 for p in parts)),
  )


def block_bound(
  predict: Predict, slots: int, samples: int, seed: Sequence[int]
) -> Bound:
  """The bound of one block, from so many random sets of masks."""
  rng = np.random.default_rng(seed)
  count = rng.integers(1, slots + 1, samples)
  rank = rng.permuted(np.tile(np.arange(slots), (samples, 1)), axis=1)
  masked = rank < count[:, None]
  logprob = np.where(masked, predict(masked), 0.0).sum(1)
  draws = logprob * slots / count
  error = draws.std(ddof=1) / math.sqrt(samples) if samples > 1 else math.inf
  return Bound(float(draws.mean()), float(error))
