"""Compiling for a GPU that is not there."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels import aot

reason = aot.unavailable()
needs_compiler = pytest.mark.skipif(reason is not None, reason=str(reason))
X = jax.ShapeDtypeStruct((256, 512), jnp.bfloat16)


@needs_compiler
@pytest.mark.parametrize("chip", aot.CHIPS)
def test_aot_compiles_for_the_named_chip_and_keeps_donation(chip):
  done = aot.compile_for(chip, lambda x: x + 1, X, donate_argnums=0)
  assert done.memory_analysis().alias_size_in_bytes == X.size * 2
  kinds = {d.device_kind for d in done.input_shardings[0][0].device_set}
  assert kinds == {aot.CHIPS[chip].name}


@needs_compiler
def test_aot_compiles_for_two_chips():
  mesh = aot.make_mesh("h200", (2,), ("tensor",))
  split = NamedSharding(mesh, PartitionSpec(None, "tensor"))
  x = jax.ShapeDtypeStruct(X.shape, X.dtype, sharding=split)
  done = aot.compile_for("h200", lambda x: x.sum(), x, mesh=mesh)
  assert "all-reduce" in done.as_text()
  assert done.memory_analysis().argument_size_in_bytes == X.size


def test_an_unknown_chip_is_named():
  with pytest.raises(ValueError, match="chip should be one of .*got 'h300'"):
    aot.make_mesh("h300")


def test_a_missing_plugin_is_said(monkeypatch):
  monkeypatch.setattr(aot.importlib.util, "find_spec", lambda name: None)
  monkeypatch.setattr(aot.jax, "__version_info__", (0, 11, 2))
  with pytest.raises(RuntimeError, match="H200 needs the CUDA plugin of JAX"):
    aot.make_mesh("h200")


def test_an_old_jax_is_said(monkeypatch):
  monkeypatch.setattr(aot.jax, "__version_info__", (0, 10, 2))
  with pytest.raises(RuntimeError, match=r"needs jax 0\.11 \(Python 3\.12\)"):
    aot.make_mesh("h200")
