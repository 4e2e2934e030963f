"""Training steps of the released sizes, compiled for H200s: memory, traffic."""

import dataclasses
import functools
import importlib.util
import math

import pytest

from benchmarks.collectives import crosses
from benchmarks.train_aot import GIB, LENGTH, Job, gradient, in_layers, step
from nemodiff_jax.nn.config import preset
from pallas_kernels import aot

reason = aot.unavailable()
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(reason is not None, reason=str(reason)),
]
FSDP = 1  # Of the mesh's axes.
# Those of the 8B between small matrices.
HEADS = dataclasses.replace(
  preset("8b"), num_layers=2, vocab_size=512, hidden_size=512,
  intermediate_size=512,
)  # fmt: skip


@functools.cache
def compiled(sizes, rows):
  job = Job(preset("8b"), sizes, rows)
  return job, gradient(job)


@pytest.mark.parametrize(
  ("sizes", "rows", "temporary", "wire"),
  [((1, 8, 1), 8, 7.2, 1.6e9), ((1, 8, 4), 32, 6.5, 2.8e9)],
)
def test_aot_of_8b(sizes, rows, temporary, wire):
  """Full FSDP: weights travel, once forward and once backward, and no more."""
  job, program = compiled(sizes, rows)
  layers = job.config.num_layers
  memory = program.memory_analysis()
  assert memory.temp_size_in_bytes <= temporary * GIB
  found = in_layers(program, layers)
  positions = {2 * LENGTH, 2 * LENGTH // sizes[2]}
  over = [c for c in found if crosses(c, sizes, FSDP)]
  for each in over:
    for dtype, dims in each.arrays:
      assert not positions & set(dims) or len(dims) == 1, each
      if each.kind == "all-gather":
        assert dtype == "bf16", each
      else:  # Kernels, and the weights of two norms.
        assert dtype == "f32", each
  total = sum(c.wire_bytes for c in found)
  print(f"8b {sizes}: {total / 1e9:.3f} GB sent per layer")
  assert total <= wire
  # The least that is possible: matrices gathered in bfloat16 twice, their
  # gradients scattered in float32.
  matrices = (218_103_808 / sizes[2]) * 7 / 8
  sent = sum(c.wire_bytes for c in over)
  assert (2 * 2 + 4) * matrices <= sent <= (2 * 2 + 4) * matrices * 1.01


def test_aot_of_two_copies_of_the_model():
  """Between copies crosses a device's part of a gradient, and not all of it."""
  job, program = compiled((2, 4, 1), 8)
  for each in in_layers(program, job.config.num_layers):
    if crosses(each, job.sizes, 0):
      for dtype, dims in each.arrays:
        assert dtype == "f32"
        assert math.prod(dims) <= 218_103_808 / 4
  # Gathers and scatters within a copy, and a sum of a quarter between copies.
  total = sum(c.wire_bytes for c in in_layers(program, job.config.num_layers))
  assert total <= 218_103_808 * (8 * 3 / 4 + 4 / 4) * 1.01


def test_aot_of_the_guard_against_bad_steps(ordinary):
  """3B: gradients and activations, and no second copy of the parameters."""
  job = Job(preset("3b"), (1, 1, 1), 1)
  memory = step(job).memory_analysis()
  parameters = memory.argument_size_in_bytes / 3
  assert memory.temp_size_in_bytes < 1.2 * parameters
  assert memory.alias_size_in_bytes > 0.99 * 3 * parameters


@pytest.mark.parametrize("packed", [True, False])
def test_aot_of_rows_that_are_one_document(packed):
  """Without starts of documents the forward pass runs in our kernel.

  With starts it runs in tokamax's, where that is installed, or in XLA.
  """
  text = gradient(Job(HEADS, (1, 1, 1), 1, packed=packed)).as_text()
  tokamax = packed and importlib.util.find_spec("tokamax") is not None
  assert ("range_attention_merge" in text) is not packed
  assert ("flash_attention_sm90" in text) is tokamax
  assert ("mosaic_gpu" in text) is (tokamax or not packed)
