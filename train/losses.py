"""The joint objective: causal prediction, and filling in of masks."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int

from nemodiff_jax.nn.layers import linear
from nemodiff_jax.nn.model import Params
from train.corruption import Noisy, Rows
from train.doubled import clean_pass, doubled_pass
from train.stack import Stack, head_kernel

COUNTS = ("supervised", "masked", "joint")
LEVELS = 4  # Noise levels that are reported apart.


@dataclasses.dataclass(frozen=True)
class Joint:
  """The objective ar_weight * ar + diffusion_weight * diffusion.

  Attributes:
    ar_weight: of the causal branch.
    diffusion_weight: of the diffusion branch; 0 leaves the noisy half out.
    count: what the diffusion branch is divided by: the 'supervised' slots
      (the estimate of the likelihood's bound), the 'masked' ones (about twice
      the weight), or 'joint': both branches by masked + supervised together.
    hard_weight: what a hard token counts, in the losses and in what they are
      divided by, of both branches; 1 for plain losses.
    chunk: positions of each row whose logits are in memory at a time.
  """

  ar_weight: float = 1.0
  diffusion_weight: float = 0.3
  count: str = "supervised"
  hard_weight: float = 1.0
  chunk: int = 1024


@struct.dataclass
class Targets:
  """What is predicted at each position of one half, alignment resolved.

  Attributes:
    token: [B, T] the token that the hidden state at this position predicts.
    weight: [B, T] weight of its cross entropy; 0: not learned.
    counts: [B, T] what it adds to the count that the loss is divided by, if
      all that may be learned counts: 0, 1, or the weight of a hard token.
  """

  token: Int[Array, "B T"]
  weight: Float[Array, "B T"]
  counts: Float[Array, "B T"]


@struct.dataclass
class Counts:
  """What the sums of a step are divided by, over all its rows.

  Attributes:
    ar: divides the causal branch.
    diffusion: divides the diffusion branch.
  """

  ar: Float[Array, ""]
  diffusion: Float[Array, ""]


def align(
  rows: Rows, noisy: Noisy | None, hard: Array, hard_weight: float
) -> tuple[Targets, Targets | None]:
  """Targets of the clean half (shifted) and of the noisy half (in place).

  The only place that knows which position predicts which token.
  """
  shift = lambda x: jnp.concatenate([x[:, 1:], jnp.zeros_like(x[:, :1])], 1)
  same = shift(rows.start + 1) == rows.start + 1  # 0 behind the last token.
  following = shift(rows.tokens)
  scale = lambda t: jnp.where(hard[t], jnp.float32(hard_weight), 1.0)
  learned = same & shift(rows.supervised)
  weight = jnp.where(learned, scale(following), 0.0)
  clean = Targets(following, weight, weight)
  if noisy is None:
    return clean, None
  counts = jnp.where(noisy.learned, scale(noisy.target), 0.0)
  weight = counts / jnp.where(noisy.masked, noisy.mask_prob, 1.0)
  weight = jnp.where(noisy.masked, weight, 0.0)
  return clean, Targets(noisy.target, weight, counts)


def count(
  joint: Joint, targets: tuple[Targets, Targets | None], noisy: Noisy | None
) -> Counts:
  """Denominators; of all devices, since the arrays are global."""
  clean, masks = targets
  ar = clean.counts.sum()
  if noisy is None or masks is None:
    return Counts(_least(ar), jnp.float32(1))
  supervised = masks.counts.sum()
  masked = jnp.where(noisy.masked, masks.counts, 0.0).sum()
  if joint.count == "joint":
    return Counts(_least(masked + ar), _least(masked + ar))
  chosen = masked if joint.count == "masked" else supervised
  return Counts(_least(ar), _least(chosen))


def joint_loss(
  stack: Stack,
  joint: Joint,
  params: Params,
  rows: Rows,
  noisy: Noisy | None,
  targets: tuple[Targets, Targets | None],
  counts: Counts,
  block: int,
) -> tuple[Float[Array, ""], dict[str, Array]]:
  """These rows' part of the loss, and sums to report: see `weigh`.

  Among the sums: 'supervised', tokens that are learned, and 'attended'.
  """
  if noisy is None:
    clean = clean_pass(stack, params, rows)
    hidden = clean[:, :0], clean
  else:
    hidden = doubled_pass(stack, params, rows, noisy, block)
  kernel = head_kernel(stack.config, params)
  loss, sums = weigh(joint, kernel, hidden, noisy, targets, counts)
  learned = (targets[0].weight > 0).sum().astype(jnp.float32)
  seen = attended(rows, noisy, block)
  return loss, sums | {"supervised": learned, "attended": seen}


def attended(rows: Rows, noisy: Noisy | None, block: int) -> Float[Array, ""]:
  """Keys that the queries of these rows see, summed over the queries."""
  index = jnp.arange(rows.tokens.shape[1], dtype=rows.start.dtype)
  seen = (index[None] - rows.start + 1).astype(jnp.float32).sum()
  if noisy is None:
    return seen
  used = noisy.learned.reshape(-1, block).any(1).sum().astype(jnp.float32)
  before = (noisy.before - noisy.start).astype(jnp.float32).sum()
  return seen + before + used * block**2


def weigh(
  joint: Joint,
  kernel: Float[Array, "D V"],
  hidden: tuple[Float[Array, "B M D"], Float[Array, "B L D"]],
  noisy: Noisy | None,
  targets: tuple[Targets, Targets | None],
  counts: Counts,
) -> tuple[Float[Array, ""], dict[str, Array]]:
  """The loss of some rows from their hidden states.

  The counts are those of the whole step: parts of it simply add up, on however
  many devices and in however many turns they are computed.

  Returns:
    The loss, and sums: 'ar', 'diffusion' (already divided by the counts), and
    cross entropy and number of masks per noise level [LEVELS].
  """
  clean, masks = targets
  join = lambda a, b: jnp.concatenate([a, b], 1)
  target = clean.token if masks is None else join(masks.token, clean.token)
  losses = token_losses(join(*hidden), kernel, target, joint.chunk)
  m = hidden[0].shape[1]
  ar = (losses[:, m:] * clean.weight).sum() / counts.ar
  if noisy is None or masks is None:
    return joint.ar_weight * ar, {"ar": ar}
  diffusion = (losses[:, :m] * masks.weight).sum() / counts.diffusion
  level = jnp.minimum((noisy.level * LEVELS).astype(jnp.int32), LEVELS - 1)
  masked = (noisy.masked & noisy.learned)[..., None].astype(jnp.float32)
  at_level = jax.nn.one_hot(level, LEVELS)[:, None] * masked
  sums = {
    "ar": ar,
    "diffusion": diffusion,
    "level_loss": (losses[:, :m, None] * at_level).sum((0, 1)),
    "level_count": at_level.sum((0, 1)),
  }
  return joint.ar_weight * ar + joint.diffusion_weight * diffusion, sums


def token_losses(
  hidden: Float[Array, "B T D"],
  kernel: Float[Array, "D V"],
  target: Int[Array, "B T"],
  chunk: int,
) -> Float[Array, "B T"]:
  """Cross entropy of each position, without ever holding [tokens, V].

  Runs over `chunk` positions of every row at a time and computes their logits
  again in the backward pass (a single chunk's are still there: nothing was
  computed since); the kernel's gradient is summed in the kernel's own dtype.
  """
  batch, length = target.shape
  pad = -length % chunk
  acc = jnp.promote_types(hidden.dtype, jnp.float32)

  def cut(x: Array) -> Array:  # [B, T, ...] -> [T / width, B, width, ...]
    x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(batch, -1, chunk, *x.shape[2:]), 1, 0)

  def part(h: Array, t: Array) -> Array:
    logits = linear(h, kernel.astype(h.dtype), acc)
    chosen = jnp.take_along_axis(logits, t[..., None], -1)[..., 0]
    return jax.nn.logsumexp(logits, -1) - chosen

  if length <= chunk:
    return part(hidden, target)
  again = jax.checkpoint(part)
  _, out = lax.scan(
    lambda _, x: (None, again(*x)), None, (cut(hidden), cut(target))
  )
  return jnp.moveaxis(out, 0, 1).reshape(batch, -1)[:, :length]


def _least(x: Array) -> Array:
  """An empty count divides nothing."""
  return jnp.maximum(x, 1.0)
