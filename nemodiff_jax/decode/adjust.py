"""Changes to the logits of a row, before temperature and filters.

In the order of vLLM: bias, then what may not be said, then penalties (the
repetition penalty of https://arxiv.org/abs/1909.05858, then OpenAI's two).
"""

from dataclasses import replace

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int


@struct.dataclass
class Adjust:
  """What each row changes.

  Attributes:
    bias: [B, V] added to the logits; -inf: never said.
    counts: [B, V] how often the output holds an id.
    prompt: [B, V] whether the prompt holds it.
    presence: [B] taken from ids that the output holds.
    frequency: [B] taken as often as it holds them.
    repetition: [B] divides positive logits of ids that prompt or output hold,
      and multiplies negative ones.
    free_at: [B] position from which on a token may end the row.
    mask: [B, T, W] of each slot of the next pass, the ids that may stand
      there: bit i of word w is id 32 w + i. None: all may.
  """

  bias: Float[Array, "B V"]
  counts: Int[Array, "B V"]
  prompt: Bool[Array, "B V"]
  presence: Float[Array, "B"]
  frequency: Float[Array, "B"]
  repetition: Float[Array, "B"]
  free_at: Int[Array, "B"]
  mask: Int[Array, "B T W"] | None = None


def adjusted(
  adjust: Adjust,
  logits: Float[Array, "B T V"],
  positions: Int[Array, "B T"],
  stop_ids: Int[Array, "B E"],
  before: Int[Array, "B T"] | None,
) -> Float[Array, "B T V"]:
  """The logits of tokens at these positions, as the rows change them.

  Args:
    adjust: of the rows.
    logits: of the model.
    positions: of the tokens that they are for.
    stop_ids: that end each row; -1 is none.
    before: [B, T] the token that each slot of the pass was given; the output
      holds the first one, and a slot counts the others up to its own. -1: none.
      None: the slots are drafts, which count the output alone.
  """
  vocab = logits.shape[-1]
  ids = jnp.arange(vocab, dtype=jnp.int32)[None, None]
  column = lambda x: x[:, None, None]
  counts = adjust.counts[:, None]
  if before is not None and before.shape[1] > 1:
    new = (before[:, :, None] == ids).at[:, 0].set(False)
    counts = counts + jnp.cumsum(new, 1, dtype=jnp.int32)
  logits = logits + adjust.bias[:, None]
  ends = _holds(stop_ids, vocab)[:, None]
  early = positions[..., None] < column(adjust.free_at)
  logits = jnp.where(early & ends, -jnp.inf, logits)
  if adjust.mask is not None and before is not None:
    words = adjust.mask[..., jnp.arange(vocab) // 32]
    may = (words >> (ids % 32)) & 1
    logits = jnp.where(may == 1, logits, -jnp.inf)
  there = counts > 0
  factor = column(adjust.repetition)
  repeated = jnp.where(logits > 0, logits / factor, logits * factor)
  logits = jnp.where(there | adjust.prompt[:, None], repeated, logits)
  logits = logits - column(adjust.frequency) * counts.astype(jnp.float32)
  return logits - jnp.where(there, column(adjust.presence), 0.0)


def count_tokens(
  adjust: Adjust, tokens: Int[Array, "B T"], count: Int[Array, "B"]
) -> Adjust:
  """The output of each row holds the first count[b] of these tokens as well."""
  slot = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
  new = (slot < count[:, None]).astype(jnp.int32)
  row = jnp.arange(len(tokens), dtype=jnp.int32)[:, None]
  return replace(adjust, counts=adjust.counts.at[row, tokens].add(new))


def _holds(ids: Int[Array, "B E"], vocab: int) -> Bool[Array, "B V"]:
  """Which ids a row lists; -1 is none."""
  row = jnp.arange(len(ids), dtype=jnp.int32)[:, None]
  at = jnp.where(ids < 0, vocab, ids)
  none = jnp.zeros((len(ids), vocab), bool)
  return none.at[row, at].set(True, mode="drop")
