"""Reveal, schedule, acceptance, emission and sampling, against plain rules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemodiff_jax.decode import ar, sampling
from nemodiff_jax.decode.commit import reveal, schedule
from nemodiff_jax.decode.config import RowSettings, decode_config
from nemodiff_jax.decode.emit import emit
from nemodiff_jax.decode.rows import make_rows
from nemodiff_jax.decode.state import (
  FULL,
  RUNNING,
  STOPPED,
  Decoder,
  Picked,
  Sampling,
  new_state,
)
from nemodiff_jax.decode.verify import accept
from nemodiff_jax.nn.cache import init_cache, own_pages
from nemodiff_jax.nn.config import preset
from nemodiff_jax.nn.model import Transformer

CONFIG = preset("tiny")
DECODER = Decoder(Transformer(CONFIG), ar.MODE, 4)
ints = lambda *x: jnp.asarray(x, jnp.int32)


@settings(max_examples=60, deadline=None)
@given(
  sure=st.lists(
    st.sampled_from([0.1, 0.3, 0.3, 0.6, 0.9]), min_size=1, max_size=8
  ),
  bits=st.integers(0, 255),
  threshold=st.sampled_from([0.2, 0.3, 0.9, 2.0]),
  quota=st.integers(0, 9),
)
def test_reveal_is_threshold_or_quota_with_ties_to_the_lower_slot(
  sure, bits, threshold, quota
):
  open_ = [i for i in range(len(sure)) if bits >> i & 1]
  ranked = sorted(open_, key=lambda i: (-sure[i], i))
  want = set(ranked[:quota]) | {
    i for i in open_ if sure[i] >= np.float32(threshold)
  }
  candidates = [i in open_ for i in range(len(sure))]
  pad = 8 - len(sure)
  got = reveal(
    jnp.asarray([sure + [0.0] * pad], jnp.float32),
    jnp.asarray([candidates + [False] * pad]),
    jnp.asarray([threshold], jnp.float32),
    ints(quota),
  )[0]
  assert {i for i in range(8) if got[i]} == {
    i for i in want if np.float32(sure[i]) == np.float32(sure[i])
  }


@pytest.mark.parametrize("masked", [0, 1, 5, 7, 31, 32])
@pytest.mark.parametrize("steps", [1, 4, 8, 32])
def test_schedule_adds_up(masked, steps):
  turns = jnp.arange(steps, dtype=jnp.int32)
  full = lambda x, dtype=jnp.int32: jnp.full(steps, x, dtype)
  none = schedule(full(masked), full(steps), turns, full(2.0, jnp.float32))
  assert none.sum() == masked and (jnp.diff(none) <= 0).all()
  some = schedule(full(masked), full(steps), turns, full(0.9, jnp.float32))
  assert (some == jnp.maximum(none, 1)).all()


def test_accept_counts_the_leading_matches_and_one_more():
  drafts = ints([4, 5, 6, 7], [4, 5, 6, 7], [4, 5, 6, 7], [4, 5, 6, 7])
  verified = ints([5, 6, 7, 8], [9, 6, 7, 8], [5, 9, 7, 8], [5, 6, 9, 8])
  assert accept(drafts, verified).tolist() == [4, 1, 2, 3]
  assert accept(ints([4]), ints([-1])).tolist() == [1]


def row_state(max_new, stops=()):
  rows = make_rows(
    CONFIG,
    decode_config(CONFIG),
    [RowSettings(max_new, stop_token_ids=stops)],
  )
  return new_state(
    DECODER, init_cache(CONFIG, 1), own_pages(1, 16), rows, ints(3)
  )


def test_emit_cuts_at_the_first_stop_and_at_the_budget():
  state, new = emit(row_state(3), Picked(ints([7, 8, 9, 10])), ints(2))
  assert new.count.tolist() == [2]
  assert (state.count[0], state.status[0]) == (2, RUNNING)
  state, new = emit(state, Picked(ints([11, 12, 13, 14])), ints(4))
  assert new.count.tolist() == [1]
  assert (state.count[0], state.status[0]) == (3, FULL)
  again, new = emit(
    state, Picked(ints([1, 1, 1, 1])), ints(4)
  )  # Ended rows stay.
  assert (again.count[0], again.status[0]) == (3, FULL)
  assert new.count.tolist() == [0]
  state, _ = emit(row_state(9, (40,)), Picked(ints([7, 40, 2, 9])), ints(4))
  assert (state.count[0], state.status[0]) == (2, STOPPED)
  state, _ = emit(
    row_state(9), Picked(ints([7, 2, 9, 9])), ints(1)
  )  # 2 is not taken.
  assert (state.count[0], state.status[0]) == (1, RUNNING)
  state, _ = emit(
    row_state(2), Picked(ints([7, 2, 9, 9])), ints(4)
  )  # Both: the stop.
  assert (state.count[0], state.status[0]) == (2, STOPPED)


def test_tokens_behind_the_output_are_no_thoughts():
  state = row_state(9)
  rows = dataclasses.replace(state.rows, think_id=ints(2))
  state = dataclasses.replace(state, rows=rows)
  new = Picked(ints([7, 2, 9, 9]))
  state, _ = emit(state, new, ints(1))  # 2 is not taken.
  assert not state.thought[0]
  state, _ = emit(state, new, ints(2))
  assert state.thought[0]
  assert emit(state, Picked(ints([7])), ints(1))[0].thought[0]  # It stays.


def plain_filter(scaled, top_k, top_p, min_p):
  """Ids kept by temperature-scaled logits, in the documented order."""
  order = sorted(range(len(scaled)), key=lambda i: -scaled[i])
  order = order[:top_k] if top_k else order
  p = np.exp(scaled[order] - scaled[order].max())
  p = p / p.sum()
  keep = [i for i in range(len(order)) if p[:i].sum() < top_p]
  keep = [i for i in keep if p[i] >= min_p * p[0]]
  return {order[i] for i in keep}


FILTERS = [(0, 1.0, 0.0), (7, 1.0, 0.0), (0, 0.7, 0.0), (0, 1.0, 0.2),
           (9, 0.8, 0.1), (1, 1.0, 0.0), (0, 1e-6, 0.0), (500, 0.999, 1.0)]  # fmt: skip


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), FILTERS)
def test_filters_keep_what_the_plain_rules_keep(top_k, top_p, min_p):
  rng = np.random.default_rng(top_k)
  logits = rng.standard_normal((1, 5, 97)).astype(np.float32) * 3
  logits[0, 1] = logits[0, 1].round()  # Many are equal, 0 and -0 too.
  logits[0, 2] = np.where(logits[0, 2] < 1, -np.inf, 2.0)
  logits[0, 3] = -50 * np.abs(logits[0, 3])
  logits[0, 4] = np.where(np.arange(97) % 2, 0.0, -0.0)  # All equal.
  row = RowSettings(9, 0.8, top_k, top_p, min_p)
  rows = make_rows(CONFIG, decode_config(CONFIG), [row])
  scaled = jnp.asarray(logits / np.float32(0.8))
  inside = np.asarray(sampling._kept(scaled, rows))
  for t in range(5):
    kept = set(np.flatnonzero(inside[0, t]).tolist())
    given = np.asarray(scaled[0, t], np.float64)
    want = plain_filter(given, top_k, top_p, min_p)
    assert kept == {i for i in want if given[i] > -np.inf}, t


@pytest.mark.parametrize("seed", range(20))
def test_rows_of_a_batch_are_filtered_as_each_alone(seed):
  """Each with other filters: some are found in fewer steps than others."""
  rng = np.random.default_rng(seed)
  draw = rng.standard_normal((len(FILTERS), 3, 97)) * rng.uniform(0.1, 5)
  logits = jnp.asarray(draw, jnp.float32)
  settings = [RowSettings(9, 1.0, *given) for given in FILTERS]
  rows = make_rows(CONFIG, decode_config(CONFIG), settings)
  inside = np.asarray(sampling._kept(logits, rows))
  for i, filters in enumerate(FILTERS):
    for t in range(3):
      want = plain_filter(np.asarray(logits[i, t], np.float64), *filters)
      assert set(np.flatnonzero(inside[i, t]).tolist()) == want, (filters, t)


def test_samples_follow_the_distribution():
  logits = jnp.log(jnp.asarray([0.1, 0.2, 0.3, 0.4] + [1e-30] * 93))
  settings_ = [RowSettings(9, 1.0, seed=s) for s in range(40)]
  rows = make_rows(CONFIG, decode_config(CONFIG), settings_)
  wide = jnp.broadcast_to(logits[None, None], (40, 100, 97))
  pos = jnp.broadcast_to(jnp.arange(100)[None], (40, 100))
  tokens = sampling.choose(DECODER, Sampling.PLAIN, wide, pos, rows)[0]
  share = np.bincount(np.ravel(tokens), minlength=97)[:4] / 4000
  np.testing.assert_allclose(share, [0.1, 0.2, 0.3, 0.4], atol=0.03)


def test_noise_depends_on_seed_and_position_alone():
  flat = jnp.zeros((3, 2, 97))
  rows = make_rows(
    CONFIG,
    decode_config(CONFIG),
    [RowSettings(9, 1.0, seed=s) for s in (4, 4, 5)],
  )
  pos = ints([7, 8], [8, 7], [7, 8])
  t = sampling.choose(DECODER, Sampling.PLAIN, flat, pos, rows)[0]
  assert t[0].tolist() == t[1, ::-1].tolist() != t[2].tolist()
  key = jax.random.fold_in(jax.random.key(4), 7)
  noise = jax.random.gumbel(key, (97,)).at[CONFIG.mask_id].set(-jnp.inf)
  assert t[0, 0] == noise.argmax()  # The documented noise.


def test_confidence_counts_the_mask_but_never_chooses_it():
  logits = jnp.zeros((1, 1, 97)).at[0, 0, CONFIG.mask_id].set(5.0)
  logits = logits.at[0, 0, 9].set(4.0)
  rows = make_rows(CONFIG, decode_config(CONFIG), [RowSettings(9)])
  token = sampling.choose(DECODER, Sampling.GREEDY, logits, ints([0]), rows)[0]
  assert token.tolist() == [[9]]
  want = np.exp(4) / (np.exp(4) + np.exp(5) + 95)
  np.testing.assert_allclose(
    sampling.confidence(logits, token), want, rtol=1e-5
  )
