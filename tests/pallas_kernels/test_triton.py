"""The Triton kernel: compiled for three GPUs, and interpreted on the CPU."""

import importlib
import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import aot
from pallas_kernels.range_attention import PAGE, range_attention
from tests.pallas_kernels.cases import dense, in_pages, make

reason = aot.unavailable()
if reason is None and not importlib.util.find_spec("jax_triton"):
  reason = "needs jax-triton: pip install 'nemodiff-jax[aot]'"
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

# B, T, S, N, K, H
CALLS = [
  (1, 1, 4096, 32, 8, 128),
  (1, 32, 4096, 32, 8, 128),
  (2, 5, 99, 6, 2, 64),
]


@pytest.mark.parametrize("shape", CALLS)
@pytest.mark.parametrize("chip", ["a100", "h200", "b200"])
def test_aot_compiles_for_sm_80_90_100(chip, shape):
  b, t, s, n, k, h = shape
  low = lambda *size: jax.ShapeDtypeStruct(size, jnp.bfloat16)
  whole = lambda *size: jax.ShapeDtypeStruct(size, jnp.int32)
  paged = s % PAGE == 0
  pool = low(b * s // PAGE, PAGE, k, h) if paged else low(b, s, k, h)
  table = whole(b, s // PAGE) if paged else None
  done = aot.compile_for(
    chip,
    lambda q, k, v, k_end, table: range_attention(
      q, k, v, k_end, table=table, implementation="triton"
    ),
    *(low(b, t, n, h), pool, pool, whole(b, t), table),
  )
  assert "triton_kernel_call" in done.as_text()


@pytest.mark.parametrize(
  ("shape", "paged", "scale"),
  [
    ((2, 5, 99, 6, 2, 16), False, 1),
    ((1, 33, 190, 4, 1, 16), False, 1),
    ((3, 1, 64, 2, 2, 16), False, 1),
    ((3, 1, 640, 2, 2, 16), True, 1),
    ((2, 32, 256, 4, 1, 16), True, 1),
    ((8, 2, 256, 16, 16, 16), False, 1),  # Shares of more than one step.
    ((8, 2, 256, 16, 16, 16), False, 300),
  ],
)
def test_interpreted_kernel_matches_dense_float64(
  shape, paged, scale, tmp_path
):
  """With a scale, the largest logit takes all, and a row may be far below 0."""
  q, k, v, k_end, _ = make(shape, 0)
  q *= scale
  k_end[-1] = 1
  k[1:, :PAGE], v[1:, :PAGE] = k[:1, :PAGE], v[:1, :PAGE]
  k_end[0, 0] = shape[2] + 5  # Means S.
  mask = np.arange(shape[2]) < k_end[..., None]
  want_out, want_lse = dense(q, k, v, mask)
  if paged:
    k, v, table = in_pages(k, v, k_end)
  else:
    table = np.arange(shape[0], dtype=np.int32)[:, None]
    for row, end in enumerate(k_end.max(1)):  # Must never be used.
      k[row, end:] = v[row, end:] = np.nan
  np.savez(tmp_path / "in.npz", q=q, k=k, v=v, k_end=k_end, table=table)
  module = "tests.pallas_kernels.interpret_triton"
  subprocess.run(
    [sys.executable, "-m", module, tmp_path / "in.npz", tmp_path / "out.npz"],
    env=os.environ | {"TRITON_INTERPRET": "1"},
    check=True,
  )
  done = np.load(tmp_path / "out.npz")
  assert not (done["out"] == 123).any() and not (done["lse"] == 123).any()
  join = importlib.import_module("pallas_kernels.range_attention.triton").join
  out, lse = join(*(jnp.asarray(done[x]) for x in ("out", "lse")))
  np.testing.assert_allclose(out, want_out, rtol=1e-4, atol=2e-6 * scale)
  np.testing.assert_allclose(lse, want_lse, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.gpu
@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize(
  "shape",
  [(2, 5, 99, 6, 2, 64), (1, 33, 300, 32, 8, 128), (3, 1, 999, 8, 2, 128)],
)
def test_on_a_gpu_matches_dense_float64(shape, paged):
  *given, k_end, _ = make(shape, 0)
  q, k, v = (np.array(x, jnp.bfloat16) for x in given)
  mask = np.arange(shape[2]) < k_end[..., None]
  want_out, want_lse = dense(*(x.astype(np.float32) for x in (q, k, v)), mask)
  table = None
  if paged:
    k, v, table = in_pages(k, v, k_end)
    table = jnp.asarray(table)
  else:
    for row, end in enumerate(k_end.max(1)):
      k[row, end:] = v[row, end:] = np.nan
  q, k, v, k_end = map(jnp.asarray, (q, k, v, k_end))
  out, lse = range_attention(
    q, k, v, k_end, table=table, implementation="triton"
  )
  np.testing.assert_allclose(out.astype(jnp.float32), want_out, atol=2e-2)
  np.testing.assert_allclose(lse, want_lse, rtol=1e-2, atol=1e-2)
