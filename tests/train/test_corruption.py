"""Every knob of the corruption, by what many rows show."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.corruption import Canvas, Corruption, Rows, corrupt

B, L, C, V = 1500, 32, 8, 40
MASK, EOS = 5, 2
PROMPT, LAST = 6, 19  # Of the one document: 20 tokens, the rest is fill.
HARD = np.arange(V) % 3 == 0  # Of the vocabulary.


@pytest.fixture(scope="module")
def many() -> Rows:
  rng = np.random.default_rng(0)
  tokens = rng.integers(6, V, (B, L))
  tokens[:, LAST:] = EOS
  supervised = np.zeros((B, L), bool)
  supervised[:, PROMPT : LAST + 1] = True
  return Rows(
    tokens=jnp.asarray(tokens, jnp.int32),
    supervised=jnp.asarray(supervised),
    start=jnp.zeros((B, L), jnp.int32),
    example=jnp.arange(B, dtype=jnp.int32),
  )


@functools.partial(jax.jit, static_argnums=(2, 3))
def run(rows, shares, edges, fill):
  """One program for all shares: compiling takes longer than running."""
  recipe = Corruption(**shares, edges=edges, fill=fill)
  canvas = Canvas(L, C, MASK, (EOS, 3))
  return corrupt(jax.random.key(7), rows, recipe, canvas, jnp.asarray(HARD))


def drawn(many, edges="document", fill=False, **shares):
  """NumPy fields, [rows, blocks, C]."""
  plain = dataclasses.asdict(Corruption()) | shares
  numbers = {k: v for k, v in plain.items() if k not in ("edges", "fill")}
  noisy = jax.tree.map(np.asarray, run(many, numbers, edges, fill))
  fold = lambda x: x.reshape(B, -1, C) if x.ndim == 2 else x
  return jax.tree.map(fold, noisy)


def near(share, expected, count=B):
  """Within four standard errors."""
  error = np.sqrt(max(expected * (1 - expected), 1e-4) / count)
  assert abs(share - expected) < 4 * error, (share, expected)


def test_the_plain_recipe(many):
  """t uniform, p = (1 - eps) t + eps, blocks from the document's start."""
  noisy = drawn(many, eps=0.2)
  assert noisy.before[0, :, 0].tolist() == [0, 8, 16, 0]
  ranks = np.sort(noisy.level)
  assert np.abs(ranks - (np.arange(B) + 0.5) / B).max() < 0.05
  inside = noisy.mask_prob > 0
  p = np.broadcast_to(0.8 * noisy.level[:, None, None] + 0.2, inside.shape)
  np.testing.assert_allclose(noisy.mask_prob[inside], p[inside], rtol=1e-6)
  wanted = (noisy.position >= PROMPT) & (np.arange(4) < 3)[None, :, None]
  np.testing.assert_array_equal(inside, wanted)
  np.testing.assert_array_equal(
    noisy.learned, wanted & (noisy.position <= LAST)
  )
  near(noisy.masked[inside].mean(), p[inside].mean(), inside.sum())
  np.testing.assert_array_equal(noisy.tokens == MASK, noisy.masked)
  taken = np.take_along_axis(
    np.asarray(many.tokens), noisy.position.reshape(B, -1), 1
  ).reshape(noisy.tokens.shape)
  given = wanted & ~noisy.masked
  np.testing.assert_array_equal(noisy.tokens[given], taken[given])
  np.testing.assert_array_equal(noisy.target[wanted], taken[wanted])


def test_slots_behind_a_text_are_masked_as_often(many):
  """As decoding meets them; without `fill` they are not learned."""
  noisy = drawn(many)
  behind = noisy.position > LAST
  assert behind.any() and not noisy.learned[behind].any()
  near(noisy.masked[behind].mean(), 0.5, B)  # They share their row's t.
  rates = noisy.mask_prob.max((1, 2))
  np.testing.assert_array_equal(
    noisy.mask_prob[behind].reshape(B, -1), rates[:, None].repeat(4, 1)
  )


def test_fill_learns_them(many):
  noisy = drawn(many, fill=True)
  behind = (noisy.position > LAST) & (noisy.mask_prob > 0)
  assert noisy.learned[behind].all() and behind.any()
  assert (noisy.target[behind] == EOS).all()
  cut = many.replace(tokens=many.tokens.at[:, LAST].set(9))  # No end.
  noisy = drawn(cut, fill=True)
  assert not noisy.learned[noisy.position > LAST].any()
  other = many.replace(tokens=many.tokens.at[:, LAST].set(3))  # Another EOS.
  noisy = drawn(other, fill=True)
  behind = (noisy.position > LAST) & (noisy.mask_prob > 0)
  assert noisy.learned[behind].all()


def test_t_min_and_draft(many):
  noisy = drawn(many, t_min=0.6, draft=0.3, eps=0.01)
  drafts = noisy.level == 1
  near(drafts.mean(), 0.3)
  assert noisy.level.min() >= 0.6
  assert abs(noisy.level[~drafts].mean() - 0.8) < 0.02
  able = noisy.mask_prob > 0
  assert noisy.masked[drafts][able[drafts]].all()


def test_hard_last_masks_hard_tokens_only(many):
  noisy = drawn(many, hard_last=0.4, draft=0.2)
  hard = HARD[noisy.target]
  easy = (noisy.mask_prob > 0) & ~hard
  only = ~easy.any((1, 2))
  near(only.mean(), 0.4)
  assert not (only & (noisy.level == 1)).any()
  learned = (noisy.position >= PROMPT) & (noisy.position <= LAST)
  able = noisy.mask_prob[only] > 0
  np.testing.assert_array_equal(
    able & learned[only], hard[only] & learned[only]
  )


def test_known_first_gives_slot_0_of_all_a_rows_blocks(many):
  noisy = drawn(many, known_first=0.7, draft=0.5, draft_known_first=0.2)
  first, draft = noisy.mask_prob[:, 1, 0] == 0, noisy.level == 1
  np.testing.assert_array_equal(first, noisy.mask_prob[:, 2, 0] == 0)
  near(first[draft].mean(), 0.2, draft.sum())
  near(first[~draft].mean(), 0.7, (~draft).sum())
  assert (noisy.mask_prob[:, 1, 1:] > 0).all()


@pytest.mark.parametrize("shift", [0.0, 0.6])
def test_blocks_begin_at_the_answer_or_up_to_a_block_before(many, shift):
  noisy = drawn(many, edges="answer", shift=shift)
  first = noisy.before[:, 0, 0]
  by = PROMPT - first
  assert by.min() >= 0 and by.max() == (PROMPT if shift else 0)
  # C - 1 = 7 tokens before would lie before the document: it stops there.
  near((by == 0).mean(), 1 - shift * 7 / 8)
  for k in range(1, PROMPT):
    near((by == k).mean(), shift / 8)
  assert (noisy.before[:, 1, 0] - first == C).all()
