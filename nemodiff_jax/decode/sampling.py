"""Which token a row of logits becomes, and how sure the model is of it.

The noise of a token depends on the row's seed and the token's position alone,
never on the pass, the mode or the batch. That is why sampled self-speculation
gives the very text that sampled ar decoding gives.
"""

import functools
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Bool, Float, Int

from nemodiff_jax.decode.adjust import adjusted
from nemodiff_jax.decode.emit import end_thinking
from nemodiff_jax.decode.state import (
  Decoder,
  DecodeState,
  Picked,
  Proposed,
  Rows,
  Sampling,
  Weights,
)
from nemodiff_jax.nn.cache import KVCache
from nemodiff_jax.nn.model import head

# Positions whose logits exist at a time: 256 MiB at 131072 ids.
MAX_READ = 512
# Below it logits / temperature leave float32; the noise decides ties only.
_LEAST_TEMPERATURE = 1e-6


def read(
  decoder: Decoder,
  weights: Weights,
  hidden: Float[Array, "B T D"],
  positions: Int[Array, "B T"],
  state: DecodeState,
  *,
  think: bool = True,
  before: Int[Array, "B T"] | None = None,
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
    before: the token before each, where that is no draft: see `adjusted`.
  """
  state = replace(state, cache=KVCache((), ()))  # Its leaves are no rows.

  def some(rows: slice) -> tuple[Picked, Array]:
    part, at, given = jax.tree.map(
      lambda x: x[rows], (state, positions, before)
    )
    logits = head(decoder.module, weights.params, hidden[rows])
    own = logits
    if part.adjust is not None:
      own = adjusted(part.adjust, logits, at, part.rows.stop_ids, given)

    def pick(sampling: Sampling) -> Picked:
      token, scaled, kept = choose(decoder, sampling, own, at, part.rows)
      if think:
        forced = end_thinking(part, token, at)
        token = jnp.where(forced, part.rows.think_id[:, None], token)
        kept = jnp.where(forced[..., None], scaled, kept)
      return with_logprobs(decoder, kept, token)

    if decoder.sampling is None:
      each = [functools.partial(pick, s) for s in Sampling]
      picked = lax.switch(_asked(part), each)
    else:
      picked = pick(decoder.sampling)
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
  sampling: Sampling,
  logits: Float[Array, "B T V"],
  positions: Int[Array, "B T"],
  rows: Rows,
) -> tuple[Int[Array, "B T"], Float[Array, "B T V"], Float[Array, "B T V"]]:
  """The token at each absolute position: greedy, or drawn with its noise.

      argmax(filter(logits / temperature) + gumbel(seed, position))

  The mask id is never chosen. A temperature of 0 is greedy.

  Returns:
    The tokens; the logits they were chosen by, before the filters and after.
  """
  ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, None]
  logits = jnp.where(ids == decoder.mask_id, -jnp.inf, logits)
  greedy = _argmax(logits)
  if sampling == Sampling.GREEDY:
    return greedy, logits, logits
  temperature = rows.temperature[:, None, None]
  sampled = temperature > 0
  scaled = logits / jnp.maximum(temperature, _LEAST_TEMPERATURE)
  kept = scaled
  if sampling == Sampling.FILTERED:
    kept = jnp.where(_kept(scaled, rows), scaled, -jnp.inf)
  noisy = kept + _gumbel(rows.seed, positions, logits.shape[-1])
  token = jnp.where(sampled[..., 0], _argmax(noisy), greedy)
  return (
    token,
    jnp.where(sampled, scaled, logits),
    jnp.where(sampled, kept, logits),
  )


def _asked(state: DecodeState) -> Int[Array, ""]:
  """The cheapest Sampling that serves the rows that run."""
  rows = state.rows
  sampled = state.running & (rows.temperature > 0)
  filters = (rows.top_k > 0) | (rows.top_p < 1) | (rows.min_p > 0)
  filtered = (sampled & filters).any()
  return sampled.any().astype(jnp.int32) + filtered.astype(jnp.int32)


def confidence(
  logits: Float[Array, "B T V"], tokens: Int[Array, "B T"]
) -> Float[Array, "B T"]:
  """softmax(logits) at the token; the mask id counts in the denominator."""
  chosen = jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0]
  return jnp.exp(chosen - jax.nn.logsumexp(logits, -1))


def proposal(
  decoder: Decoder, picked: Picked, sure: Float[Array, "B C"]
) -> Proposed | None:
  """What a pass proposed, if the run is traced."""
  return Proposed(picked.token, sure) if decoder.traced else None


def with_logprobs(
  decoder: Decoder, logits: Float[Array, "B T V"], token: Int[Array, "B T"]
) -> Picked:
  """The tokens with what `decoder.logprobs` asks for, by these logits."""
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
  """What jax.random.gumbel draws by default, whatever JAX's flags say.

  Threefry-2x32 of a key per position, one counter per id, all 32-bit.
  """
  low = jnp.arange(vocab, dtype=jnp.uint32)
  counters = jnp.concatenate([jnp.zeros_like(low), low])
  tiny = jnp.finfo(jnp.float32).tiny

  def noise(words, position):
    key = jax.random.wrap_key_data(words, impl="threefry2x32")
    key = jax.random.key_data(jax.random.fold_in(key, position))
    high, low = jnp.split(threefry_2x32(key, counters), 2)
    mantissa = ((high ^ low) >> 9) | jnp.uint32(0x3F800000)  # In [1, 2).
    unit = lax.bitcast_convert_type(mantissa, jnp.float32) - 1.0
    return -jnp.log(-jnp.log(jnp.maximum(tiny, unit * (1.0 - tiny) + tiny)))

  over_slots = jax.vmap(noise, (None, 0))
  return jax.vmap(over_slots)(seed, positions)


def _kept(scaled: Array, rows: Rows) -> Bool[Array, "B T V"]:
  """Ids that top_k, top_p and min_p, in turn, keep; ties go to lower ids.

  Nothing is sorted: the least value that a filter keeps is found by halving the
  range of the bits, and of those that equal it the lowest ids are taken.
  """
  column = lambda x: x[:, None, None]
  count = lambda x: x.sum(-1, keepdims=True, dtype=jnp.int32)
  order = _ordered(scaled)
  most = order.max(-1, keepdims=True)
  all_of_them = jnp.zeros_like(most)

  k = column(jnp.minimum(rows.top_k, scaled.shape[-1]))
  enough = lambda t: count(order >= t) >= k
  least = _largest(enough, all_of_them, jnp.where(k > 0, most, 0))
  spare = jnp.where(k > 0, k - count(order > least), 0)

  mass = jnp.exp(scaled - scaled.max(-1, keepdims=True))
  at_least = lambda t: jnp.where(order >= t, mass, 0).sum(-1, keepdims=True)
  above = jnp.where(order > least, mass, 0).sum(-1, keepdims=True)
  tie = jnp.where(order == least, mass, 0).max(-1, keepdims=True)
  total = above + spare.astype(mass.dtype) * tie
  top_p = column(rows.top_p)
  some = top_p < 1
  inner = _largest(
    lambda t: at_least(t) >= top_p * total, least, jnp.where(some, most, least)
  )
  tied = order == inner
  above = jnp.where(order > inner, mass, 0).sum(-1, keepdims=True)
  tie = jnp.where(tied, mass, 0).max(-1, keepdims=True)
  spare = jnp.where(inner == least, spare, count(tied))
  needed = jnp.ceil((top_p * total - above) / tie)
  taken = jnp.where(some, jnp.minimum(spare, needed.astype(jnp.int32)), spare)

  kept = tied & (jnp.cumsum(tied, -1, dtype=jnp.int32) <= taken)
  kept = (kept | (order > inner)) & (mass >= column(rows.min_p))
  return kept & (scaled > -jnp.inf)


def _ordered(x: Float[Array, "B T V"]) -> Array:
  """Bits that are in the order of their numbers; those of -0 are those of 0."""
  bits = lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.uint32)
  sign = jnp.uint32(1 << 31)
  return jnp.where(bits >= sign, ~bits, bits | sign)


def _largest(holds: Callable[[Array], Array], low: Array, high: Array) -> Array:
  """The largest number in (low, high] for which a test holds; else low.

  Where it holds for a number, it holds for those below.
  """

  def halve(ends: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = ends
    middle = high - (high - low) // 2
    good, open_ = holds(middle), low < high  # Others wait, as they are.
    low = jnp.where(open_ & good, middle, low)
    return low, jnp.where(open_ & ~good, middle - 1, high)

  going = lambda ends: (ends[0] < ends[1]).any()
  return lax.while_loop(going, halve, (low, high))[0]
