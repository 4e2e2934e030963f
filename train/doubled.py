"""One pass over [noisy | clean]: every decoding pass, seen from training.

The noisy half is a row of blocks, each at its own place in the text. A block
sees the clean tokens of its document before it (range attention) and itself
(local term), as a draft sees the cache and itself. The clean half is causal,
as a verification pass is.
"""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from nemodiff_jax.nn.attention import Attend
from nemodiff_jax.nn.model import Params
from pallas_kernels.range_attention import (
  local_attention,
  merge,
  range_attention,
)
from train.corruption import Noisy, Rows
from train.mesh import apart
from train.stack import Drafter, Stack, run_stack


@struct.dataclass
class DoubledPass:
  """How the layers of a doubled sequence attend.

  Attributes:
    k_start: [B, M + L] first clean key that a query sees; None: key 0, and
      attention may run in kernels that know no other.
    k_end: [B, M + L] one past the last one.
    noisy: M, length of the noisy half.
    block: C, length of its blocks.
    causal: whether a block sees itself causally (verification of a draft).
  """

  k_start: Int[Array, "B T"] | None
  k_end: Int[Array, "B T"]
  noisy: int = struct.field(pytree_node=False)
  block: int = struct.field(pytree_node=False)
  causal: bool = struct.field(pytree_node=False, default=False)

  def attend(
    self, q: Array, k: Array, v: Array, memory: None
  ) -> tuple[Array, None]:
    """Range attention over the clean keys, and each noisy block with itself."""
    m = self.noisy
    out, lse = range_attention(
      q, k[:, m:], v[:, m:], self.k_end, k_start=self.k_start
    )
    if not m:
      return out, memory
    local = local_attention(
      q[:, :m], k[:, :m], v[:, :m], self.block, causal=self.causal
    )
    noisy, _ = merge(out[:, :m], lse[:, :m], *local)
    return jnp.concatenate([noisy, out[:, m:]], 1), memory


def clean_pass(
  stack: Stack, params: Params, rows: Rows
) -> Float[Array, "B L D"]:
  """Hidden states of the clean half alone."""
  index = _index(rows)
  where = DoubledPass(k_start=rows.start, k_end=index + 1, noisy=0, block=1)
  place = index - rows.begins
  return run_stack(stack, params, rows.tokens, place, _attend(stack, where))


def doubled_pass(
  stack: Stack,
  params: Params,
  rows: Rows,
  noisy: Noisy,
  block: int,
  *,
  causal: bool = False,
  drafter: Drafter | None = None,
) -> tuple[Float[Array, "B M D"], Float[Array, "B L D"]]:
  """Hidden states of the noisy and of the clean half.

  Args:
    stack: the model.
    params: its parameters, layers stacked.
    rows: the clean texts.
    noisy: their blocks.
    block: C.
    causal: whether a block sees itself causally.
    drafter: LoRA, on for some tokens of [noisy | clean].
  """
  index, m = _index(rows), noisy.tokens.shape[1]
  join = lambda a, b: jnp.concatenate([a, b], 1)
  where = DoubledPass(
    k_start=None if rows.start is None else join(noisy.start, rows.start),
    k_end=join(noisy.before, index + 1),
    noisy=m,
    block=block,
    causal=causal,
  )
  hidden = run_stack(
    stack,
    params,
    join(noisy.tokens, rows.tokens),
    join(noisy.position - noisy.start, index - rows.begins),
    _attend(stack, where),
    drafter,
  )
  return hidden[:, :m], hidden[:, m:]


def _attend(stack: Stack, where: DoubledPass) -> Attend:
  heads = stack.config.num_kv_heads
  return apart(stack.mesh, DoubledPass.attend, where, heads)


def _index(rows: Rows) -> Int[Array, "B L"]:
  index = jnp.arange(rows.tokens.shape[1], dtype=rows.tokens.dtype)
  return jnp.broadcast_to(index[None], rows.tokens.shape)
