"""Two H200 share the 14B model: what the compiled loop communicates."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from nemodiff_jax.decode import driver
from nemodiff_jax.decode.abstract import abstract_decode
from nemodiff_jax.decode.config import decode_config
from nemodiff_jax.decode.memory import param_bytes
from nemodiff_jax.nn.config import preset
from nemodiff_jax.nn.model import Transformer
from pallas_kernels import aot

reason = aot.unavailable()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))


@pytest.mark.parametrize(
  ("mode", "scheme", "layers"),
  [
    ("ar", "int8", 2),
    pytest.param("ar", "none", 2, marks=pytest.mark.slow),
    pytest.param("linear_spec", "none", 2, marks=pytest.mark.slow),
    pytest.param("diffusion", "none", 2, marks=pytest.mark.slow),
    pytest.param("quadratic_spec", "int8", 2, marks=pytest.mark.slow),
    pytest.param("linear_spec", "none", 40, marks=pytest.mark.slow),
  ],
)
def test_aot_of_14b_on_two_h200(mode, scheme, layers):
  """Two all-reduces a layer; embeddings and logits are gathered, no weights."""
  config = dataclasses.replace(preset("14b"), num_layers=layers)
  mesh = aot.make_mesh("h200", (2,), ("tensor",))
  module = Transformer(config, jnp.dtype("bfloat16"), mesh)
  how = decode_config(config, mode)
  args = abstract_decode(
    module, how, prompt=3840, max_new_tokens=128, scheme=scheme
  )
  done = aot.compile_for("h200", driver.run, *args, mesh=mesh)
  text, memory = done.as_text(), done.memory_analysis()

  width = config.hidden_size
  rows = {"ar": 1, "quadratic_spec": 16 * 17}.get(mode, 32)
  reduced = results(text, "all-reduce")
  assert len(reduced) == 2 * layers
  computed = max(rows, 2)  # One row is computed as two: see layers.linear.
  assert {elements for _, elements in reduced} == {computed * width}
  gathered = results(text, "all-gather")
  heads = {"ar": [1], "quadratic_spec": [16, 15]}.get(mode, [32])
  expect = [rows * width, *(n * config.vocab_size for n in heads)]
  assert sorted(elements for _, elements in gathered) == sorted(expect)
  for other in ("all-to-all", "collective-permute", "reduce-scatter"):
    assert not results(text, other)

  # Half of the parameters and of the cache each, and nothing like a weight
  # among the temporaries.
  cache = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(args[2].cache))
  norms = (2 * layers + 1) * width * 2
  half = (param_bytes(config, module.dtype, scheme) + cache + norms) / 2
  assert half <= memory.argument_size_in_bytes < half * 1.01
  assert memory.alias_size_in_bytes >= cache / 2
  assert memory.temp_size_in_bytes < 64 * 2**20


def results(text: str, name: str) -> list[tuple[str, int]]:
  """(dtype, elements) of what each such collective gives."""
  found = []
  for line in text.splitlines():
    match = re.search(rf"= (.*?) {name}(-start)?\(", line)
    if match is None:
      continue
    dtype, shape = re.findall(r"(\w+)\[([\d,]*)\]", match[1])[-1]
    count = 1
    for size in filter(None, shape.split(",")):
      count *= int(size)
    found.append((dtype, count))
  return found
