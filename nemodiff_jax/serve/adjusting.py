"""What a request changes of its logits, as arrays of one row."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nemodiff_jax.decode.adjust import Adjust
from nemodiff_jax.serve.contract import Adjustments


def adjust_row(
  vocab: int, prompt: Sequence[int], changes: Adjustments
) -> Adjust:
  """The changes of a row, [1]; sequences of ids are a `Guide`'s.

  Args:
    vocab: ids that logits are for.
    prompt: of the row.
    changes: that were asked for.
  """
  bias: Any = np.zeros(vocab, np.float32)
  for token, value in changes.logit_bias.items():
    bias[token] += value
  if changes.allowed_token_ids is not None:
    allowed = np.zeros(vocab, bool)
    allowed[list(changes.allowed_token_ids)] = True
    bias[~allowed] = -np.inf
  for word in changes.bad_words:
    if len(word) == 1:
      bias[word[0]] = -np.inf
  held: Any = np.zeros(vocab, bool)
  counts: Any = np.zeros((1, vocab), np.int32)
  if changes.repetition_penalty != 1:
    held[list(prompt)] = True
  one: Any = lambda value, kind=np.float32: np.array([value], kind)
  return Adjust(
    bias=bias[None],
    counts=counts,
    prompt=held[None],
    presence=one(changes.presence_penalty),
    frequency=one(changes.frequency_penalty),
    repetition=one(changes.repetition_penalty),
    free_at=one(len(prompt) + changes.min_tokens, np.int32),
  )
