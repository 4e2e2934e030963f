"""Which open slots of a block a pass reveals."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def reveal(
  confidence: Float[Array, "B C"],
  candidates: Bool[Array, "B C"],
  threshold: Float[Array, "B"],
  quota: Int[Array, "B"],
) -> Bool[Array, "B C"]:
  """Candidates that reach the threshold, and the `quota` most confident.

  Ties go to the lower slot.
  """
  score = jnp.where(candidates, confidence, -1.0)
  mine, other = score[:, :, None], score[:, None]
  slot = jnp.arange(score.shape[1])
  earlier = slot[None, None] < slot[None, :, None]
  ahead = (other > mine) | ((other == mine) & earlier)
  rank = ahead.sum(-1, dtype=jnp.int32)
  sure = confidence >= threshold[:, None]
  return candidates & (sure | (rank < quota[:, None]))


def schedule(
  masked: Int[Array, "B"],
  steps: Int[Array, "B"],
  turn: Int[Array, "B"],
  threshold: Float[Array, "B"],
) -> Int[Array, "B"]:
  """Slots to reveal at least in denoising pass `turn` of a block.

  masked // steps, one more in the first masked % steps passes; with a
  threshold (<= 1) at least one. Over `steps` passes this adds up to `masked`,
  so that the last one reveals the rest.
  """
  quota = masked // steps + (turn < masked % steps).astype(jnp.int32)
  return jnp.where(threshold <= 1.0, jnp.maximum(quota, 1), quota)
