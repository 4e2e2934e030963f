"""Which tokens become masks: noise that depends on (seed, step, example)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

EDGES = ("document", "answer")


@struct.dataclass
class Rows:
  """Packed rows, as the data pipeline gives them.

  Attributes:
    tokens: [B, L] documents one after another.
    supervised: [B, L] tokens that are learned: never those of a prompt.
    start: [B, L] index in the row at which the token's document starts; None:
      every row is one document.
    example: [B] index of the row in the global batch.
  """

  tokens: Int[Array, "B L"]
  supervised: Bool[Array, "B L"]
  start: Int[Array, "B L"] | None
  example: Int[Array, "B"]

  @property
  def begins(self) -> Int[Array, "B L"]:
    """[B, L] where each token's document starts, also where all start at 0."""
    return jnp.zeros_like(self.tokens) if self.start is None else self.start


@struct.dataclass
class Noisy:
  """Blocks of the rows, with masks.

  Attributes:
    tokens: [B, M] what the model sees.
    target: [B, M] what the slots hold in truth.
    mask_prob: [B, M] probability with which the slot was masked; 0: it is
      given.
    masked: [B, M] which are masks.
    learned: [B, M] slots that are predicted where they are masks.
    position: [B, M] index of the slot in its row.
    before: [B, M] index of the block's first slot: the clean keys it sees end
      there; 0 in an unused block.
    start: [B, M] where the block's document starts.
    level: [B] noise level t of the row.
  """

  tokens: Int[Array, "B M"]
  target: Int[Array, "B M"]
  mask_prob: Float[Array, "B M"]
  masked: Bool[Array, "B M"]
  learned: Bool[Array, "B M"]
  position: Int[Array, "B M"]
  before: Int[Array, "B M"]
  start: Int[Array, "B M"]
  level: Float[Array, "B"]


@dataclasses.dataclass(frozen=True)
class Corruption:
  """How rows are corrupted. The defaults are the published recipe.

  A row is corrupted in one of three ways: uniformly (each supervised slot with
  probability p = (1 - eps) t + eps, one t per row), as a draft (every slot), or
  hard-last (uniformly, but only hard tokens, as happens in decoding, where
  easy ones are revealed first). Slots of a block behind the last learned token
  of its document are masked alike: decoding cannot know where a text ends.

  Attributes:
    eps: smallest p.
    t_min: t ~ U[t_min, 1].
    draft: share of rows corrupted as a draft.
    hard_last: share of rows of which only hard tokens are masked.
    known_first: chance that a row's blocks have their slot 0 given.
    draft_known_first: the same in rows corrupted as a draft.
    edges: where blocks begin: at multiples of C from the 'document' start, or
      from its 'answer' (the first supervised token).
    shift: with 'answer', share of documents whose blocks begin up to C - 1
      tokens before it, at random.
    fill: whether EOS behind a document, to the end of its last block, is
      learned; if not, those slots are masked without a loss.
  """

  eps: float = 1e-3
  t_min: float = 0.0
  draft: float = 0.0
  hard_last: float = 0.0
  known_first: float = 0.0
  draft_known_first: float = 0.0
  edges: str = "document"
  shift: float = 0.0
  fill: bool = False


@dataclasses.dataclass(frozen=True)
class Canvas:
  """Sizes and ids of the noisy half.

  Attributes:
    noisy: M, slots per row.
    block: C; divides M.
    mask_id: of a masked slot.
    eos_ids: ids that end a text; the first of them follows a document.
  """

  noisy: int
  block: int
  mask_id: int
  eos_ids: tuple[int, ...]


def corrupt(
  key: Array,
  rows: Rows,
  recipe: Corruption,
  canvas: Canvas,
  hard: Bool[Array, "V"],
) -> Noisy:
  """Cuts the rows into blocks and masks some of their slots.

  Blocks without a supervised token are left out; where a row has more than
  M / C others, so are the last ones. Row i draws its noise from
  fold_in(key, example[i]): neither the batch's split over devices nor its
  order matter.

  Args:
    key: of this step.
    rows: the packed documents.
    recipe: how they are corrupted.
    canvas: sizes and ids.
    hard: which tokens are hard.
  """

  def one(tokens, supervised, start, example) -> Noisy:
    cut, noise = jax.random.split(jax.random.fold_in(key, example))
    first = _blocks(cut, supervised, start, recipe, canvas)
    position = first[:, None] + jnp.arange(canvas.block)[None]
    used = (first < tokens.size)[:, None]
    safe = jnp.minimum(position, tokens.size - 1)
    begin = start[safe[:, :1]]
    inside = used & (position < tokens.size) & (start[safe] == begin)
    last = _of_document(jax.ops.segment_max, supervised, start, 0)[safe[:, :1]]
    behind = used & (position > last)
    target = jnp.where(inside, tokens[safe], canvas.eos_ids[0])
    learned = inside & supervised[safe]
    if recipe.fill:
      filled = behind & jnp.isin(tokens[last], jnp.array(canvas.eos_ids))
      target = jnp.where(filled, canvas.eos_ids[0], target)
      learned |= filled
    mask_prob, level = _mask_prob(noise, target, learned | behind, recipe, hard)
    draw = jax.random.fold_in(noise, 1)
    masked = jax.random.uniform(draw, mask_prob.shape) < mask_prob
    wide = lambda x: jnp.broadcast_to(x, position.shape)
    parts = Noisy(
      tokens=jnp.where(masked, canvas.mask_id, target),
      target=target,
      mask_prob=mask_prob,
      masked=masked,
      learned=learned & (mask_prob > 0),
      position=jnp.where(used, position, 0),
      before=wide(jnp.where(used, position[:, :1], 0)),
      start=wide(jnp.where(used, begin, 0)),
      level=level,
    )
    return jax.tree.map(lambda x: x.reshape(-1) if x.ndim else x, parts)

  return jax.vmap(one)(rows.tokens, rows.supervised, rows.begins, rows.example)


def _blocks(
  key, supervised, start, recipe: Corruption, canvas: Canvas
) -> Array:
  """Row index of each block's first slot, L where a block is unused."""
  size, c = supervised.size, canvas.block
  index = jnp.arange(size)
  edge = start
  if recipe.edges == "answer":
    edge = _of_document(jax.ops.segment_min, supervised, start, size)
    chosen, by = jax.random.split(key)
    by = jax.random.randint(by, (size,), 0, c)
    by = jnp.where(jax.random.uniform(chosen, (size,)) < recipe.shift, by, 0)
    edge = jnp.maximum(edge - by[start], start)
  reach = index[:, None] + jnp.arange(c)[None]
  safe = jnp.minimum(reach, size - 1)
  own = (reach < size) & (start[safe] == start[:, None])
  learned = (own & supervised[safe]).any(1)
  begins = (index >= edge) & ((index - edge) % c == 0) & learned
  return jnp.nonzero(begins, size=canvas.noisy // c, fill_value=size)[0]


def _of_document(reduce, supervised, start, empty: int) -> Array:
  """First or last supervised index of each token's document."""
  index = jnp.where(supervised, jnp.arange(supervised.size), empty)
  return reduce(index, start, supervised.size)[start]


def _mask_prob(
  key, target, maskable, recipe: Corruption, hard
) -> tuple[Array, Array]:
  """Probability that a slot of [blocks, C] is masked, and the row's t."""
  way, level, first = jax.random.uniform(key, (3,))
  t = recipe.t_min + (1 - recipe.t_min) * level
  draft = way < recipe.draft
  easy = ~draft & (way >= 1 - recipe.hard_last)
  p = jnp.where(draft, 1.0, (1 - recipe.eps) * t + recipe.eps)
  given = easy & ~hard[target]
  known = first < jnp.where(draft, recipe.draft_known_first, recipe.known_first)
  given |= known & (jnp.arange(target.shape[1]) == 0)[None]
  return jnp.where(maskable & ~given, p, 0.0), jnp.where(draft, 1.0, t)
