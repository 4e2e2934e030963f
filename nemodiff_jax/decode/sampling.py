"""Which token a row of logits becomes, and how sure the model is of it.

The noise of a token depends on the row's seed and the token's position alone,
never on the pass, the mode or the batch. That is why sampled self-speculation
gives the very text that sampled ar decoding gives.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from nemodiff_jax.decode.state import (
  Decoder,
  DecodeState,
  Picked,
  Proposed,
  Rows,
  Weights,
  end_thinking,
)
from nemodiff_jax.nn.model import head

# Positions whose logits exist at a time: 256 MiB at 131072 ids.
MAX_READ = 512


def read(
  decoder: Decoder,
  weights: Weights,
  hidden: Float[Array, "B T D"],
  positions: Int[Array, "B T"],
  state: DecodeState,
  *,
  think: bool = True,
) -> tuple[Picked, Float[Array, "B T"]]:
  """The tokens of hidden states, and how sure the model is of each.

  A few rows of the batch at a time, so that logits never grow with it.

  Args:
    decoder: static part.
    weights: parameters.
    hidden: hidden states.
    positions: absolute position of each token.
    state: of the batch.
    think: whether a thinking budget can end among these tokens.
  """

  def some(rows: slice) -> tuple[Picked, Array]:
    part, at = jax.tree.map(lambda x: x[rows], (state, positions))
    logits = head(decoder.module, weights.params, hidden[rows])
    picked = choose(decoder, logits, at, part.rows)
    if think:
      picked = end_thinking(part, picked, at)
    return picked, confidence(logits, picked.token)

  batch, slots = positions.shape
  size = max(1, MAX_READ // max(1, slots))
  if batch <= size:
    return some(slice(None))
  parts = []
  for i in range(0, batch, size):
    if parts:  # One after the other, or all logits would exist at once.
      hidden, parts[-1] = lax.optimization_barrier((hidden, parts[-1]))
    parts.append(some(slice(i, i + size)))
  return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def choose(
  decoder: Decoder,
  logits: Float[Array, "B T V"],
  positions: Int[Array, "B T"],
  rows: Rows,
) -> Picked:
  """The token at each absolute position: greedy, or drawn with its noise.

      argmax(filter(logits / temperature) + gumbel(seed, position))

  The mask id is never chosen.
  """
  ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, None]
  logits = jnp.where(ids == decoder.mask_id, -jnp.inf, logits)
  greedy = _argmax(logits)
  if not decoder.sampled:
    return _with_logprobs(decoder, logits, greedy)
  heat = rows.temperature[:, None, None]
  scaled = logits / jnp.where(heat > 0, heat, 1.0)
  if decoder.filtered:
    scaled = jnp.where(scaled >= _least_kept(scaled, rows), scaled, -jnp.inf)
  noisy = scaled + _gumbel(rows.seed, positions, logits.shape[-1])
  token = jnp.where(heat[..., 0] > 0, _argmax(noisy), greedy)
  return _with_logprobs(decoder, jnp.where(heat > 0, scaled, logits), token)


def confidence(
  logits: Float[Array, "B T V"], tokens: Int[Array, "B T"]
) -> Float[Array, "B T"]:
  """softmax(logits) at the token; the mask id counts in the denominator."""
  chosen = jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0]
  return jnp.exp(chosen - jax.nn.logsumexp(logits, -1))


def trace(
  decoder: Decoder,
  state: DecodeState,
  picked: Picked,
  sure: Float[Array, "B C"],
) -> DecodeState:
  """Keeps what a pass proposed, if the run is traced."""
  if not decoder.traced:
    return state
  return replace(state, proposed=Proposed(picked.token, sure))


def _with_logprobs(
  decoder: Decoder, logits: Float[Array, "B T V"], token: Int[Array, "B T"]
) -> Picked:
  if decoder.logprobs is None:
    return Picked(token)
  total = jax.nn.logsumexp(logits, -1)
  chosen = jnp.take_along_axis(logits, token[..., None], -1)[..., 0]
  top, ids = jax.lax.top_k(logits, decoder.logprobs)
  ids = ids.astype(jnp.int32)
  return Picked(token, chosen - total, ids, top - total[..., None])


def _argmax(x: Float[Array, "B T V"]) -> Int[Array, "B T"]:
  return jnp.argmax(x, -1).astype(jnp.int32)


def _gumbel(seed: Array, positions: Array, vocab: int) -> Array:
  def noise(words, position):
    key = jax.random.fold_in(jax.random.wrap_key_data(words), position)
    return jax.random.gumbel(key, (vocab,), jnp.float32)

  over_slots = jax.vmap(noise, (None, 0))
  return jax.vmap(over_slots)(seed, positions)


def _least_kept(scaled: Array, rows: Rows) -> Float[Array, "B T 1"]:
  """The smallest scaled logit that top_k, top_p and min_p, in turn, keep."""
  vocab = scaled.shape[-1]
  column = lambda x: x[:, None, None]
  ranked = -jnp.sort(-scaled, -1)
  rank = jnp.arange(vocab, dtype=jnp.int32)[None, None]
  keep = jnp.where(rows.top_k > 0, jnp.minimum(rows.top_k, vocab), vocab)
  ranked = jnp.where(rank < column(keep), ranked, -jnp.inf)
  weight = jax.nn.softmax(ranked, -1)
  before = jnp.cumsum(weight, -1) - weight
  top_p = column(rows.top_p)
  inside = (before < top_p) | (top_p >= 1.0)
  least_p = column(rows.min_p) * weight[..., :1]
  inside = (inside & (weight >= least_p)) | (rank == 0)
  inside = inside & (ranked > -jnp.inf)
  return jnp.where(inside, ranked, jnp.inf).min(-1, keepdims=True)
