"""One pass over [noisy | clean]: every decoding pass, seen from training.

The noisy half is a row of blocks, each at its own place in the text. A block
sees the clean tokens before it (range attention) and itself (local term), as
a draft sees the cache and itself. The clean half is causal, as a verification
pass is.
"""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from nemodiff_jax.nn.model import Params, Transformer
from pallas_kernels.range_attention import (
  local_attention,
  merge,
  range_attention,
)


@struct.dataclass
class DoubledPass:
  """How the layers of a doubled sequence attend.

  Attributes:
    k_end: [B, M + L] clean keys that a query sees.
    noisy: M, length of the noisy half.
    block: C, length of its blocks.
  """

  k_end: Int[Array, "B T"]
  noisy: int = struct.field(pytree_node=False)
  block: int = struct.field(pytree_node=False)

  def attend(
    self, q: Array, k: Array, v: Array, memory: None
  ) -> tuple[Array, None]:
    """Range attention over the clean keys, and each noisy block with itself."""
    m = self.noisy
    out, lse = range_attention(q, k[:, m:], v[:, m:], self.k_end)
    local = local_attention(q[:, :m], k[:, :m], v[:, :m], self.block)
    noisy, _ = merge(out[:, :m], lse[:, :m], *local)
    return jnp.concatenate([noisy, out[:, m:]], 1), memory


def doubled_pass(
  module: Transformer,
  params: Params,
  noisy: Int[Array, "B M"],
  starts: Int[Array, "B blocks"],
  clean: Int[Array, "B L"],
) -> tuple[Float[Array, "B M D"], Float[Array, "B L D"]]:
  """Hidden states of the noisy and of the clean half.

  Args:
    module: the model.
    params: its parameters.
    noisy: tokens of the blocks, masks among them.
    starts: position of each block's first slot; M / blocks slots per block.
    clean: the text, at positions 0..L-1.
  """
  block = noisy.shape[1] // starts.shape[1]
  slot = jnp.arange(block, dtype=starts.dtype)[None, None]
  shape = noisy.shape
  place = (starts[..., None] + slot).reshape(shape)
  before = jnp.broadcast_to(starts[..., None], (*starts.shape, block))
  text = jnp.arange(clean.shape[1], dtype=starts.dtype)[None]
  text = jnp.broadcast_to(text, clean.shape)
  where = DoubledPass(
    k_end=jnp.concatenate([before.reshape(shape), text + 1], 1),
    noisy=shape[1],
    block=block,
  )
  hidden, _ = module.apply(
    {"params": params},
    jnp.concatenate([noisy, clean], 1),
    jnp.concatenate([jnp.maximum(place, 0), text], 1),
    where.attend,
    (None,) * module.config.num_layers,
  )
  return hidden[:, : shape[1]], hidden[:, shape[1] :]
