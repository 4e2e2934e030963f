"""Range attention against a dense float64 mask."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.range_attention import (
  PAGE,
  local_attention,
  merge,
  range_attention,
  reference,
)
from pallas_kernels.range_attention.chunks import CHUNK, QUERIES, WIDE
from tests.pallas_kernels.cases import dense, in_pages, make

# B, T, S, N, K, H
SHAPES = [
  (2, 5, 9, 4, 2, 8),
  (3, 1, CHUNK, 2, 2, 16),
  (2, 7, CHUNK + 1, 6, 2, 8),
  (2, 2 * QUERIES + 22, 200, 2, 1, 4),  # In turns.
  (1, 33, 3 * CHUNK - 5, 8, 1, 4),
  (4, 2, 300, 3, 3, 8),
]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_dense_float64_mask(shape, seed):
  q, k, v, k_end, k_start = make(shape, seed)
  start = k_start if seed % 2 else np.zeros_like(k_start)
  pos = np.arange(shape[2])
  mask = (pos >= start[..., None]) & (pos < k_end[..., None])
  want_out, want_lse = dense(q, k, v, mask)
  for row, end in enumerate(k_end.max(1)):  # Must never be read.
    k[row, end:] = v[row, end:] = np.nan
  out, lse = range_attention(
    *map(jnp.asarray, (q, k, v, k_end)),
    k_start=jnp.asarray(start) if seed % 2 else None,
  )
  np.testing.assert_allclose(out, want_out, rtol=1e-4, atol=2e-6)
  np.testing.assert_allclose(lse, want_lse, rtol=1e-5, atol=1e-5)
  empty = k_end <= start
  assert (np.asarray(out)[empty] == 0).all()
  assert np.isneginf(np.asarray(lse)[empty]).all()


@pytest.mark.parametrize(
  ("batch", "queries", "starts", "dtype", "platform"),
  [
    (1, 1, False, "float32", "cpu"),
    (3, 1, False, "bfloat16", "cpu"),
    (16, 1, False, "float32", "cpu"),  # The longest rows go on alone.
    (8, 3, False, "bfloat16", "cpu"),
    (2, 4, True, "float32", "cpu"),
    (1, 17, False, "float32", "cpu"),
    (4, 32, False, "float32", "cpu"),
    (4, 32, False, "bfloat16", "cpu"),
    (2, QUERIES + 22, False, "float32", "cpu"),  # In turns.
    (2, QUERIES + 22, False, "bfloat16", "default"),
    (2, QUERIES + 22, True, "float32", "default"),  # Rows: in wide chunks.
  ],
)
def test_pages_equal_rows_to_the_last_bit(
  batch, queries, starts, dtype, platform, monkeypatch
):
  """Shuffled and shared pages, with NaN in all that no query sees."""
  chosen = lambda *args, **how: how[platform](*args)
  monkeypatch.setattr(reference.lax, "platform_dependent", chosen)
  shape = batch, queries, 5 * PAGE, 4, 2, 16
  q, k, v, k_end, k_start = make(shape, batch * queries)
  k[1:, :PAGE], v[1:, :PAGE] = k[:1, :PAGE], v[:1, :PAGE]
  k_end[-1] = PAGE  # A row of one page.
  k_end[0, 0] = 5 * PAGE + 3  # Means S.
  q, k, v = (np.array(x, dtype) for x in (q, k, v))
  *pools, table = in_pages(k, v, k_end)
  assert batch == 1 or (table[-1, 0] == table[0, 0]).all()
  pos, first = np.arange(5 * PAGE), k_start if starts else 0 * k_start
  mask = (pos >= first[..., None]) & (pos < k_end[..., None])
  out, _ = dense(*(x.astype(np.float32) for x in (q, k, v)), mask)
  start = jnp.asarray(k_start) if starts else None
  q, k, v, k_end, *paged = map(jnp.asarray, (q, k, v, k_end, *pools, table))
  want = range_attention(q, k, v, k_end, k_start=start)
  got = range_attention(q, *paged[:2], k_end, k_start=start, table=paged[2])
  if not (starts and platform == "default"):
    for a, b in zip(got, want, strict=True):
      np.testing.assert_array_equal(a, b)
  close = {"float32": 2e-6, "bfloat16": 2e-2}[dtype]
  np.testing.assert_allclose(got[0].astype(jnp.float32), out, 1e-4, close)


@pytest.mark.parametrize("heads", [(6, 2, 32), (9, 3, 64)])
def test_a_row_does_not_depend_on_how_long_the_others_are(heads):
  """To the last bit, though the longest rows go on alone."""
  batch, pages = 16, 7
  q, k, v, *_ = make((batch, 1, pages * PAGE, *heads), 1)
  q *= 3  # Peaks grow from page to page.
  ends = np.full((batch, 1), pages * PAGE - 5)
  *pools, table = in_pages(k, v, ends)
  run = jax.jit(
    lambda ends: range_attention(
      *map(jnp.asarray, (q, *pools, ends)), table=jnp.asarray(table)
    ),
  )
  whole = run(ends)
  for alone in range(batch):
    short = np.arange(batch)[:, None] % 3 * PAGE + 9
    short[alone] = ends[alone]
    for a, b in zip(run(short), whole, strict=True):
      np.testing.assert_array_equal(a[alone], b[alone])


@pytest.mark.parametrize("shape", SHAPES)
def test_large_logits_match_dense_float64(shape):
  """The largest takes nearly all; some rows see what is far below 0 alone."""
  q, k, v, k_end, _ = make(shape, 0)
  q *= 500
  k_end[-1, -1] = 1
  mask = np.arange(shape[2]) < k_end[..., None]
  want_out, want_lse = dense(q, k, v, mask)
  out, lse = range_attention(*map(jnp.asarray, (q, k, v, k_end)))
  np.testing.assert_allclose(out, want_out, rtol=2e-3, atol=2e-3)
  np.testing.assert_allclose(lse, want_lse, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("score", [1e4, 1e6, -1e6])
def test_huge_equal_logits_share_the_weight(score):
  q = jnp.full((1, 1, 1, 1), score)
  k = jnp.ones((1, 2 * CHUNK + 3, 1, 1))
  v = jnp.arange(k.size, dtype=jnp.float32).reshape(k.shape)
  out, lse = range_attention(q, k, v, jnp.full((1, 1), k.size))
  np.testing.assert_allclose(out, v.mean(), rtol=1e-5)
  np.testing.assert_allclose(lse, score + np.log(k.size), rtol=1e-6)


@pytest.mark.parametrize("keys", [CHUNK, CHUNK + 3, 17, 5])
def test_a_key_far_above_all_others_has_the_weight_wherever_it_is(keys):
  ids = jnp.arange(keys)
  q = jnp.full((keys, 1, 1, 1), 1e4)  # Row i looks for key i.
  k = jnp.where(jnp.eye(keys) == 1, 1.0, -1.0)[..., None, None]
  v = jnp.broadcast_to(ids.astype(jnp.float32)[:, None, None], k.shape)
  out, lse = range_attention(q, k, v, jnp.full((keys, 1), keys))
  np.testing.assert_allclose(out.ravel(), ids, rtol=1e-6)
  np.testing.assert_allclose(lse, 1e4, rtol=1e-6)


def test_no_row_of_pages_sees_a_key():
  """A pool of NaN and a table without a page."""
  q = jnp.ones((2, 3, 2, 8))
  pool = jnp.full((1, PAGE, 1, 8), jnp.nan)
  ends, table = jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 4), jnp.int32)
  out, lse = range_attention(q, pool, pool, ends, table=table)
  assert (out == 0).all() and jnp.isneginf(lse).all()


def test_pages_have_no_gradient():
  q, pool = jnp.ones((1, 3, 2, 8)), jnp.ones((2, PAGE, 1, 8))
  table, ends = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 3), jnp.int32)
  attend = lambda q: range_attention(q, pool, pool, ends, table=table)[0].sum()
  with pytest.raises(NotImplementedError, match="no gradient with a table"):
    jax.grad(attend)(q)


def test_all_rows_empty():
  q, k, v, k_end, _ = make(SHAPES[0], 0)
  out, lse = range_attention(
    jnp.asarray(q),
    jnp.asarray(k * np.nan),
    jnp.asarray(v * np.nan),
    jnp.zeros_like(k_end),
  )
  assert (out == 0).all() and jnp.isneginf(lse).all()


def test_a_row_does_not_depend_on_the_others():
  q, k, v, k_end, _ = make((4, 3, 3 * CHUNK, 4, 2, 8), 1)
  k_end[1] = 3 * CHUNK
  together = range_attention(*map(jnp.asarray, (q, k, v, k_end)))
  for row in range(4):
    part = slice(row, row + 1)
    alone = range_attention(*(jnp.asarray(x[part]) for x in (q, k, v, k_end)))
    np.testing.assert_allclose(
      together[0][part], alone[0], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("shape", SHAPES[:5])
def test_gradients_match_dense(shape):
  gradients_match_dense(shape)


def test_gradients_match_dense_in_wide_chunks(monkeypatch):
  """Programs of other platforms: two turns, a last chunk that is moved back."""
  other = lambda *args, cpu, default: default(*args)
  monkeypatch.setattr(reference.lax, "platform_dependent", other)
  turn, keys = WIDE
  gradients_match_dense((1, turn + 22, 2 * keys + 76, 2, 1, 4))


@pytest.mark.parametrize(
  ("platform", "queries", "starts", "backward", "keys"),
  [
    ("cuda", QUERIES + 1, True, False, 512),  # Training.
    ("cuda", QUERIES + 1, True, True, 512),
    ("cuda", QUERIES + 1, False, False, 128),  # A prefill: a page at a time.
    ("cuda", QUERIES, True, True, 128),
    ("cpu", QUERIES + 1, True, False, 128),
    ("cpu", QUERIES + 1, True, True, 128),
  ],
)
def test_keys_per_step(platform, queries, starts, backward, keys):
  """What a step reads of the keys, in the program for a platform."""

  def f(q, k, bound):
    start = bound if starts else None
    return range_attention(q, k, k, bound, k_start=start, implementation="xla")[
      0
    ].sum()

  shape = lambda dtype, *s: jax.ShapeDtypeStruct(s, dtype)
  args = (
    shape(jnp.float32, 1, queries, 2, 16),
    shape(jnp.float32, 1, 2048, 1, 16),
    shape(jnp.int32, 1, queries),
  )
  program = jax.jit(jax.grad(f) if backward else f).trace(*args)
  text = program.lower(lowering_platforms=(platform,)).as_text()
  read = re.findall(r"dynamic_slice .*sizes = \[1, (\d+), 1, 16\]", text)
  assert set(read) == {str(keys)}


def gradients_match_dense(shape):
  q, k, v, k_end, k_start = map(jnp.asarray, make(shape, 2))
  rng = np.random.default_rng(3)
  weigh_out = jnp.asarray(rng.standard_normal(q.shape).astype(np.float32))
  weigh_lse = jnp.asarray(rng.standard_normal(q.shape[:3]).astype(np.float32))

  def score(out, lse):
    lse = jnp.where(jnp.isneginf(lse), 0.0, lse)
    return (out * weigh_out).sum() + (lse * weigh_lse).sum()

  def plain(q, k, v):
    group = q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, group, 2), jnp.repeat(v, group, 2)
    s = jnp.einsum("btnh,bsnh->btns", q, k) * q.shape[-1] ** -0.5
    pos = jnp.arange(k.shape[1])[None, None]
    mask = (pos >= k_start[..., None]) & (pos < k_end[..., None])
    s = jnp.where(mask[:, :, None], s, -1e30)
    some = mask.any(-1)[:, :, None]
    lse = jnp.where(some, jax.nn.logsumexp(s, -1), 0.0)
    p = jnp.where(some[..., None], jax.nn.softmax(s, -1), 0.0)
    return score(jnp.einsum("btns,bsnh->btnh", p, v), lse)

  ours = lambda q, k, v: score(
    *range_attention(q, k, v, k_end, k_start=k_start)
  )
  got = jax.jit(jax.grad(ours, (0, 1, 2)))(q, k, v)
  want = jax.jit(jax.grad(plain, (0, 1, 2)))(q, k, v)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("scale", [1, 500])
def test_merge_joins_range_and_local_terms(scale):
  """Prefix by range attention + block with itself = one dense mask."""
  b, t, s, n, k, h, block = 2, 12, 40, 4, 2, 8, 4
  q, k_, v_, _, _ = make((b, t, s, n, k, h), 4)
  q *= scale
  rng = np.random.default_rng(5)
  own_k, own_v = (
    rng.standard_normal((b, t, k, h)).astype(np.float32) for _ in "kv"
  )
  k_end = np.repeat(rng.integers(0, s, (b, t // block)), block, 1)
  k_end[0, :block] = 0  # A block with nothing before it.
  k_end = k_end.astype(np.int32)
  out = merge(
    *range_attention(*map(jnp.asarray, (q, k_, v_, k_end))),
    *local_attention(*map(jnp.asarray, (q, own_k, own_v)), block),
  )
  mask = np.arange(s) < k_end[..., None]
  same = np.arange(t)[:, None] // block == np.arange(t) // block
  mask = np.concatenate([mask, np.broadcast_to(same, (b, t, t))], -1)
  want = dense(
    q, np.concatenate([k_, own_k], 1), np.concatenate([v_, own_v], 1), mask
  )
  atol = 2e-6 * scale
  np.testing.assert_allclose(out[0], want[0], rtol=1e-4, atol=atol)
  np.testing.assert_allclose(out[1], want[1], rtol=1e-5, atol=5 * atol)


def test_merge_of_two_empty_terms_is_zero():
  zero, none = jnp.zeros((2, 3, 4)), jnp.full((2, 3), -jnp.inf)
  out, lse = merge(zero, none, zero, none)
  assert (out == 0).all() and jnp.isneginf(lse).all()
  grads = jax.grad(lambda a: merge(a, none, zero, none)[0].sum())(zero)
  assert jnp.isfinite(grads).all()


def test_bfloat16_keeps_its_dtype():
  q, k, v, k_end, _ = map(jnp.asarray, make(SHAPES[2], 0))
  low = lambda x: x.astype(jnp.bfloat16)
  out, lse = range_attention(low(q), low(k), low(v), k_end)
  want, _ = range_attention(q, k, v, k_end)
  assert out.dtype == jnp.bfloat16 and lse.dtype == jnp.float32
  np.testing.assert_allclose(out.astype(jnp.float32), want, atol=5e-2)
