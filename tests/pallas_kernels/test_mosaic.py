"""One suite for the reference, the Mosaic kernels interpreted, and a GPU.

The interpreter runs the kernels on the CPU with their TMA copies, barriers and
MMAs, reports races and barriers that are not waited for, and hands out memory
that is not initialised as NaN.
"""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.range_attention import config, mosaic, range_attention
from tests.pallas_kernels.cases import (
  CASES,
  PAGED_CASES,
  SLOW_CASES,
  SLOW_PAGED_CASES,
  dense,
  draw_ends,
  in_pages,
  make,
)

needs_interpreter = pytest.mark.skipif(
  jax.__version_info__ < (0, 11),
  reason="the interpreter of Mosaic needs jax 0.11, so Python 3.12",
)
CHIPS = {"hopper": config.HOPPER, "blackwell": config.BLACKWELL}
KERNELS = [pytest.param(n, marks=needs_interpreter) for n in CHIPS]


def listed(cases, slow):
  """Parameters of a test: cases, and slow ones."""
  return [
    *(pytest.param(c, id=str(c)) for c in cases),
    *(pytest.param(c, id=str(c), marks=pytest.mark.slow) for c in slow),
  ]


EVERY = listed(CASES, SLOW_CASES)
PAGED = listed(PAGED_CASES, SLOW_PAGED_CASES)


def kernel(name):
  """The module of a chip's kernel."""
  return importlib.import_module(
    f"pallas_kernels.range_attention.mosaic_{name}"
  )


@pytest.fixture
def interpret(monkeypatch):
  """Parameters of the interpreter; the test fails if it has seen a race."""
  from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks
  from jax.experimental.pallas import mosaic_gpu as plgpu

  from tests.pallas_kernels import interpreter

  races = interpreter.patch(monkeypatch)
  try:
    yield plgpu.InterpretGPUParams(detect_races=True)
    assert len(races) == 2  # The attention and the merge.
    assert not any(x.races_found for x in races), "see RACE DETECTED"
  finally:  # Whatever happened: the next test starts clean.
    gpu_callbacks.reset_gpu_interpret_mode_state()


def whole(k):
  """The table of rows that are a page each."""
  return np.arange(len(k), dtype=np.int32)[:, None]


def drawn(case):
  """bfloat16 q, k, v, and k_end."""
  q, k, v, _, _ = make(case.shape, 0)
  k_end = draw_ends(case, np.random.default_rng(1))
  return *(np.array(x, jnp.bfloat16) for x in (q * case.scale, k, v)), k_end


def inputs(case):
  """The same, with NaN wherever nothing may be read."""
  q, k, v, k_end = drawn(case)
  for row, end in enumerate(k_end.max(1)):
    k[row, max(end, 0) :] = v[row, max(end, 0) :] = np.nan
  return q, k, v, k_end


def paged_inputs(case):
  """q, the pools, k_end and the table; rows begin with the same page."""
  q, k, v, k_end = drawn(case)
  k[1:, :128], v[1:, :128] = k[:1, :128], v[:1, :128]
  return (q, *in_pages(k, v, k_end), k_end), (q, k, v, k_end)


def hold(case, got, q, k, v, k_end):
  """The promise: equal to the dense mask, all of it written, no NaN.

  A result is rounded to bfloat16 once, by at most 2^-8 of it, and so is the
  weight of each key; what is summed is float32. On average none of it counts.
  """
  out, lse = (np.asarray(x, np.float64) for x in got)
  assert got[0].dtype == jnp.bfloat16 and got[1].dtype == jnp.float32
  mask = np.arange(k.shape[1]) < k_end[..., None]
  k, v = (np.nan_to_num(np.asarray(x, np.float64)) for x in (k, v))
  want_out, want_lse = dense(q, k, v, mask)
  size, _ = dense(q, k, abs(v), mask) if case.scale else (0, 0)
  assert (abs(out - want_out) <= 2**-8 * (abs(want_out) + size) + 1e-5).all()
  along = np.vdot(out, want_out)
  np.testing.assert_allclose(along, np.vdot(want_out, want_out), rtol=5e-4)
  np.testing.assert_allclose(lse, want_lse, rtol=2e-6, atol=2e-6)
  empty = k_end <= 0
  assert (out[empty] == 0).all() and np.isneginf(lse[empty]).all()


@pytest.mark.parametrize("case", EVERY)
def test_reference_matches_dense_mask(case):
  q, k, v, k_end = inputs(case)
  got = jax.jit(range_attention)(*map(jnp.asarray, (q, k, v, k_end)))
  hold(case, got, q, k, v, k_end)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("case", EVERY)
def test_mosaic_matches_dense_mask_without_races(case, name, interpret):
  q, k, v, k_end = inputs(case)
  chip = dataclasses.replace(CHIPS[name], processors=case.processors)
  got = kernel(name).range_attention(
    *map(jnp.asarray, (q, k, v, k_end, whole(k))),
    chip=chip,
    interpret=interpret,
  )
  hold(case, got, q, k, v, k_end)


@pytest.mark.parametrize("case", PAGED)
def test_reference_reads_shuffled_and_shared_pages(case):
  (q, k, v, table, k_end), same = paged_inputs(case)
  assert (table == len(k)).any() or case.batch == 1
  q, k, v, k_end, table = map(jnp.asarray, (q, k, v, k_end, table))
  got = jax.jit(range_attention)(q, k, v, k_end, table=table)
  hold(case, got, *same)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("case", PAGED)
def test_mosaic_reads_shuffled_and_shared_pages_without_races(
  case, name, interpret
):
  (q, k, v, table, k_end), same = paged_inputs(case)
  chip = dataclasses.replace(CHIPS[name], processors=case.processors)
  got = kernel(name).range_attention(
    *map(jnp.asarray, (q, k, v, k_end, table)), chip=chip, interpret=interpret
  )
  hold(case, got, *same)


@pytest.fixture
def on_device():
  """The kernel of the GPU that is there, with its chip."""
  found = jax.devices("gpu")[0].compute_capability
  name = {"9": "hopper", "10": "blackwell"}[found.split(".")[0]]
  return kernel(name).range_attention, CHIPS[name]


@pytest.mark.gpu
@pytest.mark.parametrize("registers", [True, False])
@pytest.mark.parametrize("case", [*CASES, *SLOW_CASES], ids=str)
def test_mosaic_matches_dense_mask_on_the_device(case, registers, on_device):
  run, chip = on_device
  chip = dataclasses.replace(chip, register_weights=registers)
  q, k, v, k_end = inputs(case)
  got = run(*map(jnp.asarray, (q, k, v, k_end, whole(k))), chip=chip)
  hold(case, got, q, k, v, k_end)


@pytest.mark.gpu
@pytest.mark.parametrize("case", [*PAGED_CASES, *SLOW_PAGED_CASES], ids=str)
def test_mosaic_reads_pages_on_the_device(case, on_device):
  run, chip = on_device
  (q, k, v, table, k_end), same = paged_inputs(case)
  got = run(*map(jnp.asarray, (q, k, v, k_end, table)), chip=chip)
  hold(case, got, *same)


@needs_interpreter
def test_a_store_beyond_its_row_is_refused():
  """The chip cuts one run of bytes at the end of the array, not of the row."""
  from pallas_kernels.range_attention import mosaic_block

  shapes = [jax.ShapeDtypeStruct(x, jnp.float32) for x in ((64,), (2, 4, 96))]
  with pytest.raises(ValueError, match="whole stores of 64, got 96: the rest"):
    mosaic_block.store(None, None, None, *shapes[:1], None, shapes[1], None, 0)


@needs_interpreter
def test_the_interpreter_stores_one_run_of_bytes_like_the_chip():
  from tests.pallas_kernels import interpreter

  one = slice(1, 2)
  assert interpreter.runs((one, slice(2, 6)), (3, 4)) == [
    (one, slice(2, 4)), (slice(2, 3), slice(0, 2)),
  ]  # fmt: skip
  assert interpreter.runs((2, slice(2, 9)), (3, 4)) == [
    (slice(2, 3), slice(2, 4))
  ]
  assert interpreter.runs((slice(0, 2), slice(0, 2)), (3, 4)) is None


@needs_interpreter
@pytest.mark.parametrize("name", CHIPS)
@pytest.mark.parametrize(
  ("q", "k", "dtype", "message"),
  [
    ((2, 5, 4, 64), (2, 64, 2, 64), "float32", "be bfloat16, got float32"),
    ((2, 5, 4, 96), (2, 64, 2, 96), "bfloat16", r"one of \(64, 128\), got 96"),
    ((2, 5, 18, 64), (2, 64, 2, 64), "bfloat16", "should be 1 to 8, got 9"),
    ((2, 5, 4, 64), (2, 60, 2, 64), "bfloat16", "multiple of 8, got 60"),
    ((2, 5, 4, 64), (2, 0, 2, 64), "bfloat16", "at least 8, got 0"),
    (
      (2, 5, 4, 64), (2, 2**31, 2, 64), "bfloat16",
      "at most 2147418112, got 2147483648",
    ),
  ],
)  # fmt: skip
def test_mosaic_names_what_it_cannot_serve(name, q, k, dtype, message):
  q, k = (jax.ShapeDtypeStruct(x, dtype) for x in (q, k))
  k_end, table = (
    jax.ShapeDtypeStruct(x, jnp.int32) for x in (q.shape[:2], (2, 1))
  )
  with pytest.raises(NotImplementedError, match=message):
    jax.eval_shape(kernel(name).range_attention, q, k, k, k_end, table)


def test_mosaic_says_beforehand_whether_it_can_serve():
  ask = mosaic.unsupported
  assert ask((1, 1, 32, 128), (1, 4096, 8, 128), jnp.bfloat16) is None
  assert "float32" in ask((1, 1, 32, 128), (1, 4096, 8, 128), jnp.float32)
