"""The drafter's objective: a LoRA on o_proj that drafts what the model says.

Blocks are drafted as linear_spec drafts them: slot 0 is known, the rest are
masks, and the LoRA is on for their tokens. The model without the LoRA verifies
the very tokens that were drafted, and the drafter learns where they were still
on the accepted path: up to and including the first mismatch.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.nn.layers import linear
from nemodiff_jax.nn.lora import LoraLayer
from nemodiff_jax.nn.model import Params
from train.corruption import Noisy, Rows, corrupt
from train.doubled import doubled_pass
from train.stack import Drafter, gathered_head
from train.step import Metrics, Plan


@dataclasses.dataclass(frozen=True)
class DrafterLoss:
  """LK-hybrid distillation plus cross entropy, 1 : 1.

  Attributes:
    rank: R.
    alpha: the term is alpha / R * B A x.
    temperature: of both distributions in the distillation.
    top: likeliest tokens of each of the two that are compared.
    sampled: share of slots whose draft is sampled (the rest are greedy).
    blocks: blocks of each row whose logits are in memory at a time.
  """

  rank: int = 128
  alpha: float = 512.0
  temperature: float = 3.0
  top: int = 200
  sampled: float = 0.9
  blocks: int = 8


@struct.dataclass
class DraftBatch:
  """What the drafter's loss needs of a batch.

  Attributes:
    rows: the texts.
    noisy: their blocks, masked as drafts are.
    keys: [B] of each row's sampled drafts.
    counts: how many blocks the whole batch has.
  """

  rows: Rows
  noisy: Noisy
  keys: Array
  counts: Float[Array, ""]


@struct.dataclass
class Blocks:
  """Hidden states and tokens of drafted blocks.

  Attributes:
    draft: [B, n, C, D] hidden states of the draft pass.
    verify: [B, n, C, D] of the verification pass.
    tokens: [B, n, C] slot 0 and the drafts.
    masked: [B, n, C] slots that were drafted.
  """

  draft: Float[Array, "B n C D"]
  verify: Float[Array, "B n C D"]
  tokens: Int[Array, "B n C"]
  masked: Bool[Array, "B n C"]


def init_lora(config: ModelConfig, rank: int, key: Array) -> Params:
  """A [L, N * H, R] uniform in +-1/sqrt(N * H), B [L, R, D] zero."""
  wide = config.num_heads * config.head_dim
  shape = (config.num_layers, wide, rank)
  a = jax.random.uniform(key, shape, minval=-1.0, maxval=1.0) * wide**-0.5
  b = jnp.zeros((config.num_layers, rank, config.hidden_size))
  return {"lora": {"a": a, "b": b}}


def prepare_drafter(
  plan: Plan, key: Array, rows: Rows, hard: Array
) -> DraftBatch:
  """Cuts the rows into blocks to draft, and counts these."""
  noisy = _as_draft(corrupt(key, rows, plan.recipe, plan.canvas, hard), plan)
  draw = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, i), 2))
  used = _fold(noisy.masked, plan.canvas.block).any(-1).sum()
  counts = jnp.maximum(used, 1).astype(jnp.float32)
  return DraftBatch(rows, noisy, draw(rows.example), counts)


def _as_draft(noisy: Noisy, plan: Plan) -> Noisy:
  """Masks a block from its first learned slot on, past the document's end too.

  So a draft sees what it sees in decoding. Slot 0 is always given; slots of a
  prompt are, before the answer begins.
  """
  c = plan.canvas.block
  begun = jnp.cumsum(_fold(noisy.learned, c), -1).reshape(noisy.learned.shape)
  masked = begun > 0  # Slot 0 is given, so it is not learned.
  tokens = jnp.where(masked, plan.canvas.mask_id, noisy.target)
  return dataclasses.replace(noisy, tokens=tokens, masked=masked)


def make_loss(how: DrafterLoss):
  """The drafter's loss, for `step.make_step`."""

  def loss(
    plan: Plan, params: Params, frozen: Params, part: DraftBatch
  ) -> tuple[Array, Metrics]:
    blocks = drafted_blocks(plan, how, params, frozen, part)
    kernel = gathered_head(plan.stack, frozen)
    sums = block_sums(plan, how, kernel, blocks)
    sums = {name: x / part.counts for name, x in sums.items()}
    return sums["distill"] + sums["cross_entropy"], sums

  return loss


def drafted_blocks(
  plan: Plan,
  how: DrafterLoss,
  params: Params,
  frozen: Params,
  part: DraftBatch,
) -> Blocks:
  """Drafts every block with the LoRA, and verifies it without."""
  rows, noisy, keys = part.rows, part.noisy, part.keys
  c, stack = plan.canvas.block, plan.stack
  frozen = lax.stop_gradient(frozen)
  on = jnp.ones_like(noisy.masked), jnp.zeros_like(rows.supervised)
  lora = params["lora"]
  scaled = LoraLayer(lora["a"], lora["b"] * (how.alpha / how.rank))
  drafter = Drafter(scaled, jnp.concatenate(on, 1))
  draft, _ = doubled_pass(stack, frozen, rows, noisy, c, drafter=drafter)
  kernel = gathered_head(stack, frozen)
  tokens = _draft_tokens(plan, how, kernel, lax.stop_gradient(draft), keys)
  tokens = jnp.where(noisy.masked, tokens, noisy.target)
  said = dataclasses.replace(noisy, tokens=tokens)
  verify, _ = doubled_pass(stack, frozen, rows, said, c, causal=True)
  return Blocks(
    draft=_fold(draft, c),
    verify=_fold(lax.stop_gradient(verify), c),
    tokens=_fold(tokens, c),
    masked=_fold(noisy.masked, c),
  )


def block_sums(
  plan: Plan, how: DrafterLoss, kernel: Float[Array, "D V"], blocks: Blocks
) -> dict[str, Float[Array, ""]]:
  """Sums over blocks of the two losses' means and of accepted tokens."""

  @jax.checkpoint
  def part(some: Blocks) -> dict[str, Array]:
    logits = lambda h: linear(h, kernel, jnp.float32)
    # A verifier's logits predict the next slot; slot 0 is known.
    before = jnp.roll(logits(some.verify), 1, 2)
    choice = _without(before, plan.canvas.mask_id).argmax(-1)
    match = some.masked & (some.tokens == choice)
    ends = jnp.isin(choice, jnp.array(plan.canvas.eos_ids))
    active = some.masked & _all_before((match & ~ends) | ~some.masked)
    distill, cross = slot_losses(how, logits(some.draft), before, choice)
    total = jnp.maximum(active.sum(-1), 1).astype(jnp.float32)
    mean = lambda x: jnp.where(active, x, 0.0).sum(-1) / total
    accepted = (match & active).sum(-1) + some.masked.any(-1).astype(jnp.int32)
    return {
      "distill": mean(distill).sum(),
      "cross_entropy": mean(cross).sum(),
      "accepted": accepted.sum().astype(jnp.float32),
    }

  n = blocks.tokens.shape[1]
  width = max(w for w in range(1, min(n, how.blocks) + 1) if n % w == 0)

  def cut(x: Array) -> Array:
    x = x.reshape(x.shape[0], n // width, width, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  _, sums = lax.scan(
    lambda _, x: (None, part(x)), None, jax.tree.map(cut, blocks)
  )
  return {name: x.sum() for name, x in sums.items()}


def slot_losses(
  how: DrafterLoss,
  draft: Float[Array, "*slots V"],
  verify: Float[Array, "*slots V"],
  choice: Int[Array, "*slots"],
) -> tuple[Float[Array, "*slots"], Float[Array, "*slots"]]:
  """(LK-hybrid, cross entropy against the verifier's choice) of each slot.

  Over the union of both distributions' `top` tokens, renormalised:

      LK = lam * KL(p || q) + (1 - lam) * TV(p, q),  lam = exp(-alpha / 2)
      alpha = sum(min(p, q)), without a gradient

  The cross entropy is at temperature 1, and 0 where the choice is outside the
  union.
  """
  top = min(how.top, draft.shape[-1])
  _, p_ids = lax.top_k(verify, top)
  _, q_ids = lax.top_k(lax.stop_gradient(draft), top)
  twice = (q_ids[..., :, None] == p_ids[..., None, :]).any(-1)
  ids = jnp.concatenate([p_ids, q_ids], -1)
  out = jnp.concatenate([jnp.zeros_like(twice), twice], -1)
  at = lambda x: jnp.where(out, -1e30, jnp.take_along_axis(x, ids, -1))
  z, verified = at(draft), at(verify)
  log_q = jax.nn.log_softmax(z / how.temperature)
  log_p = jax.nn.log_softmax(verified / how.temperature)
  p, q = jnp.exp(log_p), jnp.exp(log_q)
  kl = (p * jnp.where(out, 0.0, log_p - log_q)).sum(-1)
  tv = 0.5 * jnp.abs(p - q).sum(-1)
  lam = jnp.exp(-0.5 * lax.stop_gradient(jnp.minimum(p, q).sum(-1)))
  is_choice = (ids == choice[..., None]) & ~out
  cross = -jnp.where(is_choice, jax.nn.log_softmax(z), 0.0).sum(-1)
  return lam * kl + (1 - lam) * tv, cross


def _draft_tokens(plan: Plan, how, kernel, hidden, keys) -> Array:
  """Sampled at temperature 1, or greedy; [B, M] in turns over M."""
  m, c = hidden.shape[1], plan.canvas.block * how.blocks
  width = c if m % c == 0 else plan.canvas.block
  parts = jnp.moveaxis(
    hidden.reshape(hidden.shape[0], m // width, width, -1), 1, 0
  )

  def one(_, given):
    i, h = given
    logits = linear(h, kernel, jnp.float32)
    logits = _without(logits, plan.canvas.mask_id)
    fold = jax.vmap(lambda k: jax.random.fold_in(k, i))(keys)
    noise = jax.vmap(lambda k: jax.random.gumbel(k, logits.shape[1:]))(fold)
    pick = jax.vmap(lambda k: jax.random.uniform(k, logits.shape[1:2]))
    sample = pick(jax.vmap(lambda k: jax.random.fold_in(k, 1))(fold))
    sample = (sample < how.sampled)[..., None]
    return None, (logits + jnp.where(sample, noise, 0.0)).argmax(-1)

  _, tokens = lax.scan(one, None, (jnp.arange(m // width), parts))
  return jnp.moveaxis(tokens, 0, 1).reshape(hidden.shape[:2])


def _without(logits: Array, token: int) -> Array:
  """The mask is never a candidate."""
  return logits.at[..., token].set(-jnp.inf)


def _all_before(x: Array) -> Array:
  """Whether every slot before this one of its block is true."""
  return jnp.cumprod(jnp.roll(x, 1, -1).at[..., 0].set(True), -1).astype(bool)


def _fold(x: Array, block: int) -> Array:
  """[B, M, ...] -> [B, M / C, C, ...]."""
  return x.reshape(x.shape[0], -1, block, *x.shape[2:])
