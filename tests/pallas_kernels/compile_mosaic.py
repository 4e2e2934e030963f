"""Compiles a Mosaic kernel for a GPU that is not there; prints PTX and spills.

The compiler writes to the output of the process, so a test runs this module
as another one: python -m tests.pallas_kernels.compile_mosaic hopper SIZES...
with SIZES as B,T,S,N,K,H, and ',smem' after it for softmax weights that go
through shared memory.
"""

import dataclasses
import functools
import importlib
import os
import re
import sys

os.environ["MOSAIC_GPU_DUMP_PTX"] = "1"
os.environ["MOSAIC_GPU_DUMP_PTXAS"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp

from pallas_kernels import aot
from pallas_kernels.range_attention import config, mosaic

TARGETS = {"hopper": "h200", "blackwell": "b200"}


def compile_one(name: str, case: str) -> str:
  """What one call was cut into, and the kernels that it takes."""
  sizes = case.removesuffix(",smem")
  batch, queries, keys, heads, kv_heads, dim = map(int, sizes.split(","))
  chip = getattr(config, name.upper())
  if case.endswith("smem"):
    chip = dataclasses.replace(chip, register_weights=False)
  module = importlib.import_module(
    f"pallas_kernels.range_attention.mosaic_{name}"
  )
  cache = jax.ShapeDtypeStruct((batch, keys, kv_heads, dim), jnp.bfloat16)
  q = jax.ShapeDtypeStruct((batch, queries, heads, dim), jnp.bfloat16)
  ends = jax.ShapeDtypeStruct((batch, queries), jnp.int32)
  done = aot.compile_for(
    TARGETS[name],
    functools.partial(module.range_attention, chip=chip),
    q, cache, cache, ends,
  )  # fmt: skip
  cut = mosaic.work(chip, q.shape, cache.shape)
  entry = done.as_text().split("ENTRY")[1]
  kernels = re.findall(r"= .*? (fusion|custom-call|copy)\(", entry)
  return (
    f"DONE {name} {case}: blocks={batch * kv_heads * cut.tiles * cut.splits}"
    f" parts={cut.parts} stages={cut.stages} kernels={len(kernels)}"
    f" copies={kernels.count('copy')}"
  )


if __name__ == "__main__":
  for one in sys.argv[2:]:
    print(compile_one(sys.argv[1], one), flush=True)
