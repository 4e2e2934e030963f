"""The joint loss against a dense mask in float64, and what it must not do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nemodiff_jax.nn.model import Transformer, head
from tests.train import dense
from tests.train.conftest import BLOCK, LENGTH
from train import doubled
from train.corruption import Canvas, Corruption, Rows
from train.doubled import clean_pass
from train.losses import Joint, token_losses
from train.stack import Stack, stack_layers, unstack_layers
from train.step import Plan, _gradients, loss_joint, prepare_joint


def plan_of(tiny, **changes) -> Plan:
  names = ("count", "diffusion_weight", "hard_weight")
  joint = {k: changes.pop(k) for k in names if k in changes}
  given = {
    "stack": Stack(tiny.config, remat="none"),
    "joint": Joint(chunk=12, **joint),
    "recipe": Corruption(),
    "canvas": Canvas(LENGTH, BLOCK, tiny.config.mask_id, tiny.config.eos_ids),
  }
  return Plan(**given | changes)


def stacked(tiny):
  return stack_layers(tiny.params, tiny.config.num_layers)


def prepared(plan, rows, step=0, heavy=()):
  hard = jnp.isin(
    jnp.arange(plan.stack.config.vocab_size), jnp.array(heavy, jnp.int32)
  )
  make = jax.jit(lambda s, r: prepare_joint(plan, plan.key(s), r, hard))
  return make(jnp.int32(step), rows)


def corrupted(plan, rows, step=0):
  return prepared(plan, rows, step).noisy


def loss_and_grads(plan, params, rows):
  batch = prepared(plan, rows)
  run = jax.jit(lambda p, b: _gradients(plan, loss_joint, p, {}, b))
  grads, sums = run(params, batch)
  return sums, grads, batch.noisy


@pytest.fixture(scope="module")
def joint_run(tiny, rows):
  return loss_and_grads(plan_of(tiny), stacked(tiny), rows)


def test_loss_is_that_of_a_dense_mask_in_float64(tiny, rows, joint_run):
  sums, _, noisy = joint_run
  expected = dense.joint(tiny.config, tiny.params, rows, noisy, BLOCK)
  np.testing.assert_allclose(sums["loss"], expected, rtol=1e-5)


def test_gradient_is_that_of_a_dense_mask_in_float64(tiny, rows, joint_run):
  """Along a random direction, by central differences of the twin."""
  _, grads, noisy = joint_run
  grads = unstack_layers(grads, tiny.config.num_layers)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), tiny.params)
  way = jax.tree.map(lambda x: rng.standard_normal(x.shape), params)
  moved = lambda by: jax.tree.map(lambda x, w: x + by * w, params, way)
  loss = lambda p: dense.joint(tiny.config, p, rows, noisy, BLOCK)
  expected = (loss(moved(1e-6)) - loss(moved(-1e-6))) / 2e-6
  found = sum(
    float((np.asarray(g, np.float64) * w).sum())
    for g, w in zip(
      jax.tree.leaves(dict(sorted(grads.items()))),
      jax.tree.leaves(dict(sorted(way.items()))),
      strict=True,
    )
  )
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_rows_of_one_document_need_no_starts(tiny, rows, monkeypatch):
  """Attention gets none, so that kernels without them serve; same loss."""
  alone = rows.replace(start=None)
  plan, given = plan_of(tiny), []
  attend = doubled.range_attention

  def noted(*args, k_start):
    given.append(k_start)
    return attend(*args, k_start=k_start)

  monkeypatch.setattr(doubled, "range_attention", noted)
  part = prepared(plan, alone)
  loss, _ = jax.jit(lambda p, x: loss_joint(plan, p, {}, x))(
    stacked(tiny), part
  )
  assert given and all(x is None for x in given)
  whole = rows.replace(start=jnp.zeros_like(rows.start))
  expected = dense.joint(tiny.config, tiny.params, whole, part.noisy, BLOCK)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("count", ["masked", "joint"])
def test_other_counts_divide_by_what_they_name(tiny, rows, joint_run, count):
  _, _, noisy = joint_run
  plan = plan_of(tiny, count=count)
  part = prepared(plan, rows)
  loss, _ = jax.jit(lambda p, x: loss_joint(plan, p, {}, x))(
    stacked(tiny), part
  )
  expected = dense.joint(
    tiny.config, tiny.params, rows, noisy, BLOCK, count=count
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("count", ["supervised", "joint"])
def test_hard_tokens_weigh_alike_in_both_losses(tiny, rows, count):
  """With equal cross entropies, their weight would change no mean."""
  heavy = range(6, tiny.config.vocab_size, 3)
  plan = plan_of(tiny, count=count, hard_weight=2.5)
  part = prepared(plan, rows, heavy=tuple(heavy))
  loss, _ = jax.jit(lambda p, x: loss_joint(plan, p, {}, x))(
    stacked(tiny), part
  )
  args = tiny.config, tiny.params, rows, part.noisy, BLOCK
  expected = dense.joint(*args, count=count, heavy=heavy)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_gradients_do_not_depend_on_how_rows_are_split(tiny, rows, joint_run):
  sums, grads, _ = joint_run
  turns, split, _ = loss_and_grads(
    plan_of(tiny, accumulate=3), stacked(tiny), rows
  )
  np.testing.assert_allclose(turns["loss"], sums["loss"], rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6),
    split,
    grads,
  )


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_rematerialisation_changes_no_gradient(tiny, rows, joint_run, remat):
  _, grads, _ = joint_run
  plan = plan_of(tiny, stack=Stack(tiny.config, remat=remat))
  _, again, _ = loss_and_grads(plan, stacked(tiny), rows)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6),
    again,
    grads,
  )


def test_noise_belongs_to_the_example_and_the_step(tiny, rows):
  plan = plan_of(tiny)
  draw = lambda step, r: corrupted(plan, r, step)
  first = draw(0, rows)
  order = np.array([2, 0, 1])
  turned = draw(0, jax.tree.map(lambda x: x[order], rows))
  np.testing.assert_array_equal(turned.masked, first.masked[order])
  assert len({float(t) for t in first.level}) == 3
  assert not np.array_equal(draw(1, rows).level, first.level)


def last_learned(rows, at=None) -> np.ndarray:
  """[B, L] the last supervised index of each token's document; at some."""
  start, learned = np.asarray(rows.start), np.asarray(rows.supervised)
  last = np.array([
    [max(np.flatnonzero(s & (b == i)), default=-1) for i in b]
    for s, b in zip(learned, start, strict=True)
  ])  # fmt: skip
  return last if at is None else np.take_along_axis(last, at, 1)


def test_prompts_are_never_masked_and_the_rate_is_p(tiny, rows):
  many = jax.tree.map(lambda x: jnp.tile(x, (200,) + (1,) * (x.ndim - 1)), rows)
  many = many.replace(example=jnp.arange(600, dtype=jnp.int32))
  plan = plan_of(tiny)
  noisy = corrupted(plan, many)
  at = np.asarray(noisy.position)
  learned = np.take_along_axis(np.asarray(many.supervised), at, 1)
  masked, prob = np.asarray(noisy.masked), np.asarray(noisy.mask_prob)
  behind = at > last_learned(many, at)
  assert not masked[~learned & ~behind].any() and behind.any()
  assert not np.asarray(noisy.learned)[~learned].any()
  learned |= behind  # Masked as often, though without a loss.
  p = (1 - 1e-3) * np.asarray(noisy.level) + 1e-3
  np.testing.assert_allclose(
    prob[learned], np.broadcast_to(p[:, None], at.shape)[learned], rtol=1e-6
  )
  off = (masked - prob)[learned]
  assert abs(off.mean()) < 4 * np.sqrt(
    (prob * (1 - prob))[learned].mean() / off.size
  )
  assert abs(np.asarray(noisy.level).mean() - 0.5) < 0.05


def test_blocks_may_start_at_the_answer_and_end_in_learned_eos(tiny):
  """One document of 3 + 9 tokens with EOS at its end, in a row of 24."""
  eos = tiny.config.eos_ids[0]
  tokens = np.full((1, 24), eos)
  tokens[0, :11] = np.arange(20, 31)
  supervised = np.zeros((1, 24), bool)
  supervised[0, 3:12] = True
  rows = Rows(
    tokens=jnp.asarray(tokens, jnp.int32),
    supervised=jnp.asarray(supervised),
    start=jnp.zeros((1, 24), jnp.int32),
    example=jnp.zeros(1, jnp.int32),
  )
  how = Corruption(draft=1.0, draft_known_first=1.0, edges="answer", fill=True)
  canvas = Canvas(24, 8, tiny.config.mask_id, (eos,))
  noisy = corrupted(plan_of(tiny, recipe=how, canvas=canvas), rows)
  assert noisy.before[0, ::8].tolist() == [3, 11, 0]
  assert noisy.target[0, :8].tolist() == list(range(23, 31))
  assert noisy.target[0, 8:16].tolist() == [eos] * 8
  known = [0] + [1] * 7
  assert noisy.masked[0].tolist() == known + known + [0] * 8


def test_a_shifted_block_keeps_its_prompt_tokens_clean(tiny, rows):
  how = Corruption(draft=1.0, edges="answer", shift=1.0)
  noisy = corrupted(plan_of(tiny, recipe=how), rows)
  at = np.asarray(noisy.position)
  room = np.pad(np.asarray(rows.supervised), ((0, 0), (0, at.max() + 1)))
  learned = np.take_along_axis(room, at, 1)  # Nothing beyond the row's end.
  masked, before = np.asarray(noisy.masked), np.asarray(noisy.before)
  assert not masked[~learned & (at <= last_learned(rows, before))].any()
  assert (before >= np.asarray(noisy.start)).all()
  assert (
    np.asarray(noisy.start)
    == np.take_along_axis(np.asarray(rows.start), before, 1)
  ).all()


def test_logits_are_those_of_decoding(tiny):
  """The scanned stack is the model that decodes, batch and all."""
  rng = np.random.default_rng(1)
  tokens = jnp.asarray(rng.integers(6, 97, (2, 16)), jnp.int32)
  rows = Rows(
    tokens,
    jnp.ones((2, 16), bool),
    jnp.zeros((2, 16), jnp.int32),
    jnp.arange(2),
  )
  run = jax.jit(lambda p, r: clean_pass(Stack(tiny.config), p, r))
  hidden = run(stacked(tiny), rows)
  found = head(Transformer(tiny.config), tiny.params, hidden)
  twin = dense.NumpyModel(tiny.config, tiny.params)
  for row in range(2):
    expected = twin.logits(tokens[row], np.arange(16), np.tri(16, dtype=bool))
    np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_chunks_change_no_cross_entropy(chunk):
  rng = np.random.default_rng(0)
  hidden = rng.standard_normal((2, 13, 6))
  kernel, target = rng.standard_normal((6, 31)), rng.integers(0, 31, (2, 13))
  found = token_losses(
    jnp.asarray(hidden, jnp.float32),
    jnp.asarray(kernel, jnp.float32),
    jnp.asarray(target, jnp.int32),
    chunk,
  )
  for b in range(2):
    for t in range(13):
      expected = dense.cross_entropy(hidden[b, t] @ kernel, target[b, t])
      np.testing.assert_allclose(found[b, t], expected, rtol=1e-5)


def test_cross_entropy_never_holds_all_logits():
  """In the compiled program: temporaries far below [tokens, V], gradient too."""
  tokens, vocab, width = 1024, 8192, 64
  shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
  loss = lambda h, k, t: token_losses(h, k, t, 64).sum()
  compiled = (
    jax.jit(jax.value_and_grad(loss, (0, 1)))
    .lower(
      shape(1, tokens, width),
      shape(width, vocab),
      jax.ShapeDtypeStruct((1, tokens), jnp.int32),
    )
    .compile()
  )
  temporary = compiled.memory_analysis().temp_size_in_bytes
  assert temporary < tokens * vocab * 4 / 3, temporary
