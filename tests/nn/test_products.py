"""The matrix products: their precision, and one row on a GPU."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.programs import Program
from benchmarks.train import new_params, plan, rows
from nemodiff_jax.decode import driver
from nemodiff_jax.nn import layers
from nemodiff_jax.nn.config import preset
from nemodiff_jax.nn.model import Transformer
from train.step import loss_joint, prepare_joint

HIGHEST, DEFAULT = jax.lax.Precision.HIGHEST, jax.lax.Precision.DEFAULT


def products(jaxpr) -> list:
  """Every dot_general in a jaxpr, at any depth."""
  found = []
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      found.append(eqn)
    for value in jax.tree.leaves(
      eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
    ):
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        found += products(inner)
  return found


def decoding(mode, dtype, scheme="none", tied=False):
  """The jaxpr of a decode loop: passes, logits, the local term, the drafter."""
  model = replace(preset("tiny"), tie_embeddings=tied)
  program = Program(model, mode, capacity=512, scheme=scheme)

  def cast(x):
    low = x.dtype == jnp.bfloat16
    return jax.ShapeDtypeStruct(x.shape, dtype if low else x.dtype)

  return driver.run.trace(
    replace(program.decoder, module=Transformer(model, dtype)),
    jax.tree.map(cast, program.weights()),
    *jax.tree.map(cast, jax.eval_shape(program.begun)),
  ).jaxpr


def training(dtype):
  """The jaxpr of the joint loss's gradient."""
  config = preset("tiny")
  made = plan(config, 256, dtype, "full")
  hard = jnp.zeros(config.vocab_size, bool)

  def gradient(params, batch):
    part = prepare_joint(made, made.key(jnp.int32(0)), batch, hard)
    return jax.grad(lambda p: loss_joint(made, p, {}, part)[0])(params)

  params = jax.eval_shape(lambda: new_params(config, dtype))
  with jax.numpy_dtype_promotion("standard"):
    return jax.make_jaxpr(gradient)(params, rows(config, 1, 256)).jaxpr


PROGRAMS = {
  "ar": lambda dtype: decoding("ar", dtype),
  "ar, tied": lambda dtype: decoding("ar", dtype, tied=True),
  "ar, int8": lambda dtype: decoding("ar", dtype, scheme="int8"),
  "diffusion": lambda dtype: decoding("diffusion", dtype),
  "linear_spec": lambda dtype: decoding("linear_spec", dtype),
  "quadratic_spec": lambda dtype: decoding("quadratic_spec", dtype),
  "training": training,
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize(
  ("dtype", "around", "want"),
  [("float32", "bfloat16", HIGHEST), ("bfloat16", "highest", DEFAULT)],
)
def test_every_product_has_the_precision_of_its_dtype(
  name, dtype, around, want
):
  """Whatever context it is traced in: no TF32 for float32."""
  with jax.default_matmul_precision(around):
    found = products(PROGRAMS[name](jnp.dtype(dtype)))
  assert len(found) >= 2 * 7 + 3  # Two layers, the head, two of attention.
  for eqn in found:
    assert eqn.params["precision"] == (want, want), eqn


@pytest.fixture
def as_on_a_gpu(monkeypatch):
  """Takes the branch of other platforms than a CPU."""
  other = lambda *args, cpu, default: default(*args)
  monkeypatch.setattr(layers.lax, "platform_dependent", other)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("out", [None, jnp.float32])
@pytest.mark.parametrize("lead", [(), (1,), (1, 1), (2, 1)])
def test_one_row_as_two_is_the_same_product(lead, out):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((*lead, 96)), jnp.bfloat16)
  kernel = jnp.asarray(rng.standard_normal((96, 40)), jnp.bfloat16)
  got = layers.linear(x, kernel, out)
  assert got.shape == (*lead, 40)
  assert got.dtype == (out or jnp.bfloat16)
  want = np.asarray(x, float) @ np.asarray(kernel, float)
  off = 2**-8 if out is None else 1e-6  # Rounded once, or not at all.
  np.testing.assert_allclose(
    np.asarray(got, float), want, rtol=off, atol=off * 1e-2 + 1e-5
  )


@pytest.mark.parametrize(
  ("platform", "dtype", "rows"),
  [("cuda", "bfloat16", 2), ("cuda", "float32", 1), ("cpu", "bfloat16", 1)],
)
def test_one_row_is_two_on_a_gpu_in_bfloat16_only(platform, dtype, rows):
  x = jax.ShapeDtypeStruct((1, 1, 96), dtype)
  kernel = jax.ShapeDtypeStruct((96, 40), dtype)
  traced = jax.jit(layers.linear).trace(x, kernel)
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  (line,) = [x for x in text.splitlines() if "dot_general" in x]
  shape = line.split("(tensor<")[1].split("x96x")[0]
  assert shape == ("2" if rows == 2 else "1x1")
