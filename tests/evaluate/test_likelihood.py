"""Likelihoods against distributions whose true values are known."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nemodiff_jax import api
from nemodiff_jax.decode.state import Weights
from nemodiff_jax.errors import UserError
from nemodiff_jax.evaluate import likelihood
from nemodiff_jax.evaluate.forward import Text, read
from nemodiff_jax.nn.config import preset
from nemodiff_jax.nn.model import Transformer, init_params
from tests import helpers
from tests.twin import NumpyModel


def model_of(tiny) -> api.Model:
  return api.Model(tiny.config, None, None, tiny.module, tiny.weights())


@pytest.fixture(scope="module")
def bigram():
  """A model that is a Markov chain by construction, and its two tables.

  Layers add nothing, embeddings are along the axes and the norm scales them by
  sqrt(D), so that a token's logits are its row of the head.
  """
  config = dataclasses.replace(preset("tiny"), hidden_size=128, vocab_size=97)
  params = init_params(config, jax.random.key(0))
  for i in range(config.num_layers):
    layer = params[f"layers_{i}"]
    for part, name in (("self_attn", "o_proj"), ("mlp", "down_proj")):
      layer[part][name] = jax.tree.map(jnp.zeros_like, layer[part][name])
  unit = 100 * jnp.eye(config.vocab_size, config.hidden_size)  # eps is nothing.
  params["embed_tokens"]["embedding"] = unit
  params["norm"] = jax.tree.map(jnp.ones_like, params["norm"])
  logits = np.random.default_rng(0).normal(0, 2, (97, 97))
  kernel = np.zeros((128, 97))
  kernel[:97] = logits / math.sqrt(128)
  params["diffusion_head"]["kernel"] = jnp.asarray(kernel, jnp.float32)
  kept = np.where(np.arange(97) == config.mask_id, -np.inf, logits)
  table = kept - np.log(np.exp(kept).sum(1, keepdims=True))
  weights = Weights(params)
  return api.Model(config, None, None, Transformer(config), weights), table


def test_ar_gives_the_chains_own_log_probabilities(bigram):
  model, table = bigram
  rng = np.random.default_rng(1)
  pairs = [
    (rng.integers(6, 97, n).tolist(), rng.integers(6, 97, m).tolist())
    for n, m in ((1, 5), (3, 1), (130, 70), (40, 90))
  ]
  for (context, continuation), got in zip(
    pairs, likelihood.score_ar(model, pairs, 3), strict=True
  ):
    chain = [context[-1], *continuation]
    true = [table[a, b] for a, b in itertools.pairwise(chain)]
    np.testing.assert_allclose(got.logprobs, true, atol=2e-4)
    assert got.total == pytest.approx(sum(true), abs=1e-3)


def test_greedy_is_told_of_just_the_greedy_continuation(bigram):
  model, table = bigram
  token, best = 9, []
  for _ in range(4):
    token = int(table[token].argmax())
    best.append(token)
  other = [*best[:-1], (best[-1] + 1) % 97 or 7]
  good, bad = likelihood.score_ar(model, [([9], best), ([9], other)], 2)
  assert good.greedy and not bad.greedy


def test_the_bound_is_the_true_value_where_slots_are_independent(bigram):
  """Here a mask's answer sees nothing else: log p is a sum over the slots."""
  model, table = bigram
  context, text = [8, 9], [10, 20, 30, 40, 50, 60, 70, 80, 90, 11]
  got = likelihood.bound(model, context, text, samples=400, batch_size=16)
  true = sum(table[model.config.mask_id, t] for t in text)
  assert abs(got.mean - true) < 4 * got.error < 0.2 * abs(true)
  again = likelihood.bound(model, context, text, samples=400, batch_size=64)
  assert again.mean == pytest.approx(got.mean, abs=1e-3)  # Seeded.


def joint(slots: int, words: int, seed: int) -> np.ndarray:
  rng = np.random.default_rng(seed)
  p = rng.dirichlet(np.full(words**slots, 0.3)).reshape((words,) * slots)
  return (p + 1e-3) / (p + 1e-3).sum()


def conditionals(p: np.ndarray, true: np.ndarray):
  """[S, C] masks -> log p(x_i | the visible slots), from the joint itself."""

  def predict(masked: np.ndarray) -> np.ndarray:
    out = np.zeros(masked.shape)
    for row, m in enumerate(masked):
      seen = p[
        tuple(slice(None) if h else t for h, t in zip(m, true, strict=True))
      ]
      hidden = [i for i in range(len(true)) if m[i]]
      for axis, i in enumerate(hidden):
        others = tuple(a for a in range(len(hidden)) if a != axis)
        marginal = seen.sum(others)
        out[row, i] = math.log(marginal[true[i]] / marginal.sum())
    return out

  return predict


def test_the_bound_is_tight_for_a_joint_distributions_own_conditionals():
  """Then every order of revealing gives log p(x), so their mean does."""
  p = joint(4, 3, 0)
  for true in ([0, 1, 2, 0], [2, 2, 1, 1]):
    true = np.array(true)
    got = likelihood.block_bound(conditionals(p, true), 4, 4000, (1,))
    exact = math.log(p[tuple(true)])
    assert abs(got.mean - exact) < 4 * got.error
    assert got.error < 0.1 * abs(exact)


def test_the_bound_lies_below_for_conditionals_that_do_not_fit():
  """Marginals alone: E is the sum of their logs, whatever log p is."""
  p, true = joint(3, 3, 1), np.array([0, 2, 1])
  marginal = [
    p.sum(tuple(a for a in range(3) if a != i))[true[i]] for i in range(3)
  ]
  predict = lambda masked: np.where(masked, np.log(marginal)[None], 0.0)
  got = likelihood.block_bound(predict, 3, 4000, (2,))
  assert abs(got.mean - np.log(marginal).sum()) < 4 * got.error


def test_ar_scores_are_those_of_the_numpy_model(tiny):
  model, twin = model_of(tiny), NumpyModel(tiny.config, tiny.params)
  prompts = helpers.prompts_of(tiny.config, (5, 12, 150))
  pairs = [(p[: len(p) // 2], p[len(p) // 2 :]) for p in prompts]
  for (context, rest), got in zip(
    pairs, likelihood.score_ar(model, pairs, 2), strict=True
  ):
    logits = twin.causal([*context, *rest])
    logits[:, tiny.config.mask_id] = -np.inf
    logits = logits[len(context) - 1 : -1]
    total = np.log(np.exp(logits).sum(1))
    true = logits[np.arange(len(rest)), rest] - total
    np.testing.assert_allclose(got.logprobs, true, atol=1e-3)
    assert got.greedy == (logits.argmax(1) == rest).all()


def test_a_block_sees_itself_and_its_prefix(tiny):
  """Every set of masks of a block, by the NumPy model's own block pass."""
  model, twin = model_of(tiny), NumpyModel(tiny.config, tiny.params)
  prompt = helpers.prompts_of(tiny.config, (14,))[0]
  prefix, true, mask = prompt[:10], prompt[10:], tiny.config.mask_id
  blocks = [
    [mask if i in hidden else t for i, t in enumerate(true)]
    for size in range(1, 5)
    for hidden in itertools.combinations(range(4), size)
  ]
  texts = [Text([*prefix, *b], 10, range(10, 14), true) for b in blocks]
  for block, got in zip(blocks, read(model, texts, 4), strict=True):
    logits = twin.block(prefix, block)
    whole = np.exp(logits).sum(1)
    logits[:, mask] = -np.inf
    said = logits[np.arange(4), true] - np.log(np.exp(logits).sum(1))
    np.testing.assert_allclose(got.logprob, said, atol=2e-3)
    assert got.token.tolist() == logits.argmax(1).tolist()
    np.testing.assert_allclose(
      got.confidence, np.exp(logits.max(1)) / whole, atol=1e-3
    )


def test_batches_and_order_change_no_score(tiny):
  model = model_of(tiny)
  prompts = helpers.prompts_of(tiny.config, (4, 60, 9, 130, 21))
  pairs = [(p[:2], p[2:]) for p in prompts]
  alone = likelihood.score_ar(model, pairs, 1)
  turned = likelihood.score_ar(model, pairs[::-1], 4)[::-1]
  for a, b in zip(alone, turned, strict=True):
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)


def test_a_long_context_is_cut_at_the_left(tiny):
  model = model_of(tiny)
  ids = helpers.prompts_of(tiny.config, (600,))[0]
  (long,) = likelihood.score_ar(model, [(ids[:590], ids[590:])], 1)
  (cut,) = likelihood.score_ar(model, [(ids[87:590], ids[590:])], 1)
  np.testing.assert_allclose(long.logprobs, cut.logprobs, atol=1e-5)


def test_what_cannot_be_scored_is_told(tiny):
  model = model_of(tiny)
  with pytest.raises(UserError, match="at least one token"):
    likelihood.score_ar(model, [([], [7])], 1)
  with pytest.raises(UserError, match="does not fit into 512 positions"):
    likelihood.score_ar(model, [([7], [8] * 513)], 1)
  with pytest.raises(UserError, match="positions are needed"):
    likelihood.bound(model, [7] * 510, [8])
  plain = dataclasses.replace(tiny.config, mask_id=None)
  with pytest.raises(UserError, match="needs a mask id"):
    likelihood.bound(dataclasses.replace(model, config=plain), [7], [8])
