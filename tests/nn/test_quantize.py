"""int8 weights: the rounding, the product, the modes, the loader."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nemodiff_jax import api
from nemodiff_jax.decode.config import RowSettings, decode_config
from nemodiff_jax.decode.generate import decode_ids
from nemodiff_jax.decode.memory import param_bytes
from nemodiff_jax.decode.state import Weights
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import open_checkpoint
from nemodiff_jax.io.tensors import TensorFolder
from nemodiff_jax.nn.layers import Linear
from nemodiff_jax.nn.quantize import quantize, quantize_kernel, scheme_of
from tests import helpers, twin

SIZES, LIMITS = (3, 17, 9, 30), (20, 33, 1, 12)


def dequantised(params):
  """The tree with plain kernels, in float64."""
  if "scale" in params:
    kernel, scale = (np.asarray(params[k], float) for k in ("kernel", "scale"))
    return {"kernel": kernel * scale}
  return {
    k: dequantised(v) if isinstance(v, dict) else v for k, v in params.items()
  }


def random_kernel(inputs=40, outputs=24):
  rng = np.random.default_rng(0)
  w = rng.standard_normal((inputs, outputs)) * np.exp(rng.normal(size=outputs))
  return w.astype(np.float32)


def test_a_weight_is_off_by_half_a_step_at_most():
  w = random_kernel()
  w[:, 3] = 0
  got = quantize_kernel(jnp.asarray(w))
  kernel, scale = np.asarray(got["kernel"]), np.asarray(got["scale"])
  assert kernel.dtype == np.int8
  assert (np.abs(kernel).max(0)[np.arange(24) != 3] == 127).all()
  np.testing.assert_allclose(
    np.delete(scale, 3), np.abs(np.delete(w, 3, 1)).max(0) / 127, rtol=1e-6
  )
  assert (np.abs(w - kernel * scale) <= scale * 0.50001).all()
  assert (kernel[:, 3] == 0).all()
  assert scale[3] == 1


@pytest.mark.parametrize(
  ("dtype", "out", "off"),
  [("float32", None, 1e-6), ("bfloat16", None, 0.01), ("bfloat16", "f4", 1e-6)],
)
def test_the_product_is_that_of_the_rounded_weights(dtype, out, off):
  params = quantize_kernel(jnp.asarray(random_kernel()))
  x = np.random.default_rng(1).standard_normal((2, 3, 40))
  x = jnp.asarray(x, dtype)
  out = None if out is None else jnp.dtype(out)
  got = Linear(24, out).apply({"params": params}, x)
  expect = np.asarray(x, float) @ dequantised(params)["kernel"]
  assert got.dtype == (out or x.dtype)
  error = np.abs(np.asarray(got, float) - expect) / np.abs(expect).max()
  assert error.max() < off


@pytest.mark.parametrize(
  ("mode", "how", "expect"),
  [
    ("ar", {}, lambda *a: twin.ar(*a)),
    (
      "diffusion",
      {"block_length": 8, "threshold": 0.5},
      lambda *a: twin.diffusion(*a, 8, 0.5, None),
    ),
    (
      "linear_spec",
      {"block_length": 8},
      lambda *a: twin.linear_spec(*a, 8, 0.0, True),
    ),
    (
      "quadratic_spec",
      {"block_length": 8},
      lambda *a: twin.quadratic_spec(*a, 8),
    ),
  ],
)
def test_modes_match_the_twin_of_the_rounded_weights(tiny, mode, how, expect):
  """The twin has no int8: it multiplies by kernel * scale in float64."""
  weights = Weights(quantize(tiny.params), tiny.weights(lora=True).lora)
  scale = helpers.LORA_ALPHA / helpers.LORA_RANK
  model = twin.NumpyModel(
    tiny.config, dequantised(weights.params), tiny.lora, scale
  )
  config = decode_config(tiny.config, mode, **how)
  prompts = helpers.prompts_of(tiny.config, SIZES)
  rows = [RowSettings(max_new_tokens=n) for n in LIMITS]
  got = decode_ids(tiny.module, weights, config, prompts, rows)
  for prompt, limit, found in zip(prompts, LIMITS, got, strict=True):
    ids, reason, nfe, accepted = expect(
      model, prompt, limit, tiny.config.eos_ids
    )
    assert found.token_ids == ids
    assert (found.finish_reason, found.nfe) == (reason, nfe)
    assert found.accepted == accepted


def test_loading_equals_rounding_and_never_holds_the_full_weights(
  tiny, folder, monkeypatch
):
  held = []
  read = TensorFolder.read

  def watched(self, *args, **how):
    for item in read(self, *args, **how):
      yield item
      held.append(sum(x.nbytes for x in jax.live_arrays()))

  monkeypatch.setattr(TensorFolder, "read", watched)
  before = sum(x.nbytes for x in jax.live_arrays())
  params = open_checkpoint(str(folder)).load_params(scheme="int8")
  expect = quantize(tiny.params)
  assert jax.tree.structure(params) == jax.tree.structure(expect)
  assert jax.tree.all(
    jax.tree.map(lambda a, b: bool((a == b).all()), params, expect)
  )
  assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"int8", "float32"}
  own = sum(x.nbytes for x in jax.tree.leaves(params))
  largest = max(x.nbytes for x in jax.tree.leaves(tiny.params))
  assert max(held) - before <= own + largest


def test_memory_is_estimated_in_int8(folder):
  opened = open_checkpoint(str(folder))
  for scheme in ("none", "int8"):
    params = opened.load_params("bfloat16", scheme)
    expect = sum(x.nbytes for x in jax.tree.leaves(params))
    assert param_bytes(opened.config, "bfloat16", scheme) == expect
    assert scheme_of(params) == scheme


def test_a_tied_head_stays_as_it_is(tmp_path):
  tied = helpers.make_tiny(tie_embeddings=True)
  helpers.write_checkpoint(tmp_path, tied)
  params = open_checkpoint(str(tmp_path)).load_params(scheme="int8")
  assert params["embed_tokens"]["embedding"].dtype == jnp.float32
  assert "diffusion_head" not in params
  assert scheme_of(params) == "int8"


def test_an_unknown_scheme_is_named():
  with pytest.raises(UserError, match=r"quantize should be one of .*'int4'"):
    api.load(quantize="int4")
