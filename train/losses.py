"""The joint objective: causal prediction, and filling in of masks."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from nemodiff_jax.nn.model import Params, Transformer, head
from train.doubled import doubled_pass


@struct.dataclass
class Batch:
  """Rows of one step.

  Attributes:
    clean: [B, L] the texts.
    ar_weight: [B, L] weight of predicting clean[:, i] from what is before it.
    noisy: [B, M] blocks of the texts with masks.
    starts: [B, blocks] where each block stands in its text.
    target: [B, M] what the noisy slots hold in truth.
    weight: [B, M] 1 / p at masked slots that count, 0 elsewhere; p is the
      probability with which the slot was masked.
    supervised: [B, M] slots that might have been masked.
  """

  clean: Int[Array, "B L"]
  ar_weight: Float[Array, "B L"]
  noisy: Int[Array, "B M"]
  starts: Int[Array, "B blocks"]
  target: Int[Array, "B M"]
  weight: Float[Array, "B M"]
  supervised: Float[Array, "B M"]


def joint_loss(
  module: Transformer, params: Params, batch: Batch, diffusion_weight: float
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """Ar + diffusion_weight * diffusion, and both parts.

  ar is the mean cross entropy of the supervised clean tokens, each predicted
  from the position before it; diffusion is sum(CE / p over masked slots) /
  supervised slots, each predicted at its own position.
  """
  noisy, clean = doubled_pass(
    module, params, batch.noisy, batch.starts, batch.clean
  )
  ar = _cross_entropy(module, params, clean[:, :-1], batch.clean[:, 1:])
  weight = batch.ar_weight[:, 1:]
  ar = (ar * weight).sum() / weight.sum()
  masked = _cross_entropy(module, params, noisy, batch.target)
  masked = (masked * batch.weight).sum() / batch.supervised.sum()
  loss = ar + diffusion_weight * masked
  return loss, {"ar": ar, "diffusion": masked}


def _cross_entropy(
  module: Transformer, params: Params, hidden: Array, target: Array
) -> Float[Array, "B T"]:
  logits = head(module, params, hidden)
  chosen = jnp.take_along_axis(logits, target[..., None], -1)[..., 0]
  return jax.nn.logsumexp(logits, -1) - chosen
