"""The joint objective: causal prediction, and filling in of masks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from nemodiff_jax.nn.layers import linear
from nemodiff_jax.nn.model import Params
from nemodiff_jax.nn.sharding import SPLIT
from train.corruption import Noisy, Rows
from train.doubled import clean_pass, doubled_pass
from train.mesh import ROWS, row_shards, spread, whole
from train.stack import HEAD, Stack, head_kernel, kernel_gradients

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
  same = shift(rows.begins + 1) == rows.begins + 1  # 0 behind the last token.
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
  loss, sums = weigh(joint, kernel, hidden, noisy, targets, counts, stack.mesh)
  learned = (targets[0].weight > 0).sum().astype(jnp.float32)
  seen = attended(rows, noisy, block)
  return loss, sums | {"supervised": learned, "attended": seen}


def attended(rows: Rows, noisy: Noisy | None, block: int) -> Float[Array, ""]:
  """Keys that the queries of these rows see, summed over the queries."""
  index = jnp.arange(rows.tokens.shape[1], dtype=rows.tokens.dtype)
  seen = (index[None] - rows.begins + 1).astype(jnp.float32).sum()
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
  mesh: Mesh | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
  """The loss of some rows from their hidden states.

  The counts are those of the whole step: parts of it simply add up, on however
  many devices and in however many microbatches.

  Returns:
    The loss, and sums: 'ar', 'diffusion' (already divided by the counts), and
    cross entropy and number of masks per noise level [LEVELS].
  """
  clean, masks = targets
  join = lambda a, b: jnp.concatenate([a, b], 1)
  target = clean.token if masks is None else join(masks.token, clean.token)
  losses = token_losses(join(*hidden), kernel, target, joint.chunk, mesh)
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def token_losses(
  hidden: Float[Array, "B T D"],
  kernel: Float[Array, "D V"],
  target: Int[Array, "B T"],
  chunk: int,
  mesh: Mesh | None = None,
) -> Float[Array, "B T"]:
  """Cross entropy of each position, without ever holding [tokens, V].

  Runs over `chunk` positions of every row at a time and computes their logits
  again in the backward pass (a single chunk's are still there: nothing was
  computed since). The kernel is gathered once, in the dtype of `hidden`; its
  gradient is summed in its own dtype, by each device for itself, and over the
  devices once.
  """
  return _losses_forward(hidden, kernel, target, chunk, mesh)[0]


def _losses_forward(hidden, kernel, target, chunk, mesh):
  gathered = whole(mesh, HEAD, kernel.astype(hidden.dtype))
  one = target.shape[1] <= chunk

  def part(_, x):
    h, t = x
    logits = _logits(h, gathered)
    chosen = jnp.take_along_axis(logits, t[..., None], -1)[..., 0]
    lse = jax.nn.logsumexp(logits, -1)
    return None, (lse - chosen, lse, logits if one else None)

  parts = tuple(_cut(x, chunk) for x in (hidden, target))
  _, (out, lse, logits) = lax.scan(part, None, parts)
  like = jnp.zeros((), kernel.dtype)
  saved = hidden, gathered, target, lse, logits, like
  return _joined(out, target.shape[1]), saved


def _losses_backward(chunk, mesh, saved, d_out):
  hidden, gathered, target, lse, logits, like = saved
  shards = 1 if mesh is None else row_shards(mesh)

  def part(total, x):
    (h, t, d), lse, logits = x
    logits = _logits(h, gathered) if logits is None else logits
    hit = lax.broadcasted_iota(t.dtype, logits.shape, 2) == t[..., None]
    share = jnp.exp(logits - lse[..., None]) - hit.astype(logits.dtype)
    d = (share * d[..., None]).astype(h.dtype)
    total += kernel_gradients(shards, h, d, like.dtype)
    total = spread(mesh, total, P(*ROWS, None, "tensor"))
    return total, linear(d, gathered.T)

  start = jnp.zeros((shards, *gathered.shape), like.dtype)
  start = spread(mesh, start, P(*ROWS, None, "tensor"))
  parts = tuple(_cut(x, chunk) for x in (hidden, target, d_out))
  total, d_hidden = lax.scan(part, start, (parts, lse, logits))
  # Over fsdp first: each device needs its part of the sum only.
  copies = 1 if mesh is None else mesh.shape["data"]
  total = total.reshape(copies, -1, *gathered.shape).sum(1)
  total = spread(mesh, total, P("data", *SPLIT[HEAD])).sum(0)
  total = spread(mesh, total, P(*SPLIT[HEAD]))
  return _joined(d_hidden, target.shape[1]), total, None


token_losses.defvjp(_losses_forward, _losses_backward)


def _logits(hidden: Array, kernel: Array) -> Array:
  wide = hidden.dtype == jnp.float64
  return linear(hidden, kernel, jnp.float64 if wide else jnp.float32)


def _cut(x: Array, width: int) -> Array:
  """[B, T, ...] -> [T / width, B, width, ...], filled with zeros."""
  width = min(width, x.shape[1])
  more = -x.shape[1] % width
  x = jnp.pad(x, ((0, 0), (0, more)) + ((0, 0),) * (x.ndim - 2))
  return jnp.moveaxis(x.reshape(x.shape[0], -1, width, *x.shape[2:]), 1, 0)


def _joined(x: Array, length: int) -> Array:
  """The inverse of `_cut`."""
  x = jnp.moveaxis(x, 0, 1)
  return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def _least(x: Array) -> Array:
  """An empty count divides nothing."""
  return jnp.maximum(x, 1.0)
