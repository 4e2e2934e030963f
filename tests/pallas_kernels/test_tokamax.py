"""tokamax's kernels behind range attention: the wrapper, and what compiles."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import aot
from pallas_kernels.range_attention import dispatch, tokamax

B, T, S, N, K, H = 2, 24, 16, 4, 2, 8


def standin(row_scores):
  """tokamax's two kernels for one row, in plain jnp and any dtype."""

  def forward(q, k, v, *, k_start, k_end, logits_scale, out_dtype):
    s = row_scores(q, k, k_start[0], k_end[0], logits_scale)
    peak = s.max(-1)
    p = jnp.exp(s - jnp.where(jnp.isneginf(peak), 0.0, peak)[..., None])
    total = p.sum(-1)
    out = jnp.einsum("hts,shd->thd", p, jnp.repeat(v, N // K, 1))
    out = out / jnp.maximum(total, 1e-30).T[..., None]
    return out.astype(out_dtype), (peak, total)

  def backward(q, k, v, residuals, out, d_out, *, k_start, k_end, logits_scale):
    peak, total = residuals
    s = row_scores(q, k, k_start[0], k_end[0], logits_scale)
    p = jnp.exp(s - peak[..., None]) / total[..., None]
    delta = jnp.einsum("thd,thd->ht", out, d_out)
    dp = jnp.einsum("thd,shd->hts", d_out, jnp.repeat(v, N // K, 1))
    ds = p * (dp - delta[..., None]) * logits_scale
    fold = lambda x: x.reshape(S, K, N // K, H).sum(2)
    dq = jnp.einsum("hts,shd->thd", ds, jnp.repeat(k, N // K, 1))
    dk = fold(jnp.einsum("hts,thd->shd", ds, q))
    return dq, dk, fold(jnp.einsum("hts,thd->shd", p, d_out)), None

  return forward, backward


def scores(q, k, start, end, scale):
  s = jnp.einsum("thd,shd->hts", q, jnp.repeat(k, N // K, 1)) * scale
  index = jnp.arange(S, dtype=jnp.int32)[None]
  seen = (index >= start[:, None]) & (index < end[:, None])
  return jnp.where(seen[None], s, -jnp.inf)


def dense(q, k, v, k_end, k_start):
  """The op by its definition; an empty range gives 0 and -inf."""
  s = jax.vmap(lambda *a: scores(*a, H**-0.5))(q, k, k_start, k_end)
  lse = jax.nn.logsumexp(s, -1)
  p = jnp.exp(s - jnp.where(jnp.isneginf(lse), 0.0, lse)[..., None])
  out = jnp.einsum("bhts,bshd->bthd", p, jnp.repeat(v, N // K, 2))
  return out, jnp.swapaxes(lse, 1, 2)


def test_output_and_gradients_through_both_outputs(monkeypatch):
  """Against autodiff in float64, empty ranges and zero cotangents included."""
  monkeypatch.setattr(tokamax, "kernels", lambda: standin(scores))
  rng = np.random.default_rng(0)
  with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
    draw = lambda *s: jnp.asarray(rng.standard_normal(s))
    q, k, v = draw(B, T, N, H), draw(B, S, K, H), draw(B, S, K, H)
    start = jnp.asarray(rng.integers(0, S // 2, (B, T)), jnp.int32)
    more = jnp.asarray(rng.integers(0, S, (B, T)), jnp.int32)
    end = jnp.minimum(start + more, S + 3).at[0, 0].set(0)
    d_out, d_lse = draw(B, T, N, H).at[0, 3].set(0.0), draw(B, T, N)
    d_out = d_out.at[1, 5, 0].set(0.0).at[1, 5, 0, 2].set(1e-3)

    def loss(f):
      def run(q, k, v):
        out, lse = f(q, k, v, end, start)
        return (out * d_out).sum() + jnp.where(
          jnp.isneginf(lse), 0.0, lse * d_lse
        ).sum()

      return jax.value_and_grad(run, (0, 1, 2))(q, k, v)

    found, expect = loss(tokamax.range_attention), loss(dense)
    for a, b in zip(*map(jax.tree.leaves, (found, expect)), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
    out, lse = tokamax.range_attention(q, k, v, end, start)
    wide, expect = dense(q, k, v, end, start)
    np.testing.assert_allclose(out, wide, atol=1e-12)
    np.testing.assert_allclose(lse, expect, atol=1e-12)
    assert bool(jnp.isneginf(lse[0, 0]).all())


def test_what_lies_beyond_every_range_never_arrives(monkeypatch):
  monkeypatch.setattr(tokamax, "kernels", lambda: standin(scores))
  rng = np.random.default_rng(1)
  with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
    draw = lambda *s: jnp.asarray(rng.standard_normal(s))
    q, k, v = draw(B, T, N, H), draw(B, S, K, H), draw(B, S, K, H)
    end = jnp.full((B, T), 7, jnp.int32)
    f = lambda *a: tokamax.range_attention(*a, end, jnp.zeros_like(end))
    clean = f(q, k, v)
    soiled = f(q, k.at[:, 7:].set(jnp.nan), v.at[:, 7:].set(jnp.nan))
  for a, b in zip(clean, soiled, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  ("q", "k", "dtype", "reason"),
  [
    ((1, 256, 8, 128), (1, 256, 2, 128), jnp.float32, "bfloat16"),
    ((1, 256, 8, 96), (1, 256, 2, 96), jnp.bfloat16, "head dimension"),
    ((1, 100, 8, 128), (1, 256, 2, 128), jnp.bfloat16, "multiples of 128"),
    ((1, 256, 8, 128), (1, 200, 2, 128), jnp.bfloat16, "multiples of 128"),
  ],
)
def test_what_it_cannot_serve_is_said(monkeypatch, q, k, dtype, reason):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
  monkeypatch.setattr(dispatch, "capability", lambda: "9.0")
  with pytest.raises(NotImplementedError, match=reason):
    dispatch.resolve("tokamax", q, k, dtype, starts=True)
  good = (1, 256, 8, 128), (1, 256, 2, 128)
  assert dispatch.resolve(None, *good, jnp.bfloat16, starts=True) == "tokamax"


@pytest.mark.slow
def test_aot_of_forward_and_backward(capfd, monkeypatch):
  """For H200, at the heads of 3B and 8B: three kernels and no spills."""
  if (reason := aot.unavailable()) is not None:
    pytest.skip(reason)
  if importlib.util.find_spec("tokamax") is None:
    pytest.skip("needs tokamax: make test-slow installs it in .venv-slow")
  monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
  shape = lambda dtype, *s: jax.ShapeDtypeStruct(s, dtype)
  wide, narrow = (1, 1024, 8, 128), (1, 512, 2, 128)
  args = [shape(jnp.bfloat16, *s) for s in (wide, narrow, narrow)]
  args += [shape(jnp.int32, 1, 1024)] * 2
  args += [shape(jnp.bfloat16, *wide), shape(jnp.float32, *wide[:3])]

  def gradients(q, k, v, end, start, *cotangents):
    f = lambda *a: tokamax.range_attention(*a, end, start)
    return jax.vjp(f, q, k, v)[1](cotangents)

  text = aot.compile_for("h200", gradients, *args).as_text()
  assert text.count("mosaic_gpu") >= 3
  said = "".join(capfd.readouterr())
  assert said.count("0 bytes spill stores, 0 bytes spill loads") >= 3
  assert said.count("bytes spill stores") == said.count(" 0 bytes spill stores")
