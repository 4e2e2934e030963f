"""Compiles the Mosaic kernels for a GPU that is not there, and keeps the code.

The compiler looks at the environment of its process, so a test runs this
module as another one:

    python -m tests.pallas_kernels.compile_mosaic CHIP FOLDER SIZES...

with SIZES as B,T,S,N,K,H, then ',paged' for a cache in pages, and ',smem' for
softmax weights that go through shared memory. PTX, spills and shared memory are left in FOLDER.
"""

import dataclasses
import importlib
import math
import os
import re
import sys

if __name__ == "__main__":
  os.environ["MOSAIC_GPU_DUMP_TO"] = sys.argv[2]
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp

from pallas_kernels import aot
from pallas_kernels.range_attention import PAGE, config, mosaic

KERNELS = {"h200": "hopper", "b200": "blackwell", "b300": "blackwell"}


def compile_one(target: str, case: str) -> str:
  """What one call was cut into, and the kernels that it takes."""
  *sizes, _ = f"{case},".replace("smem,", "").replace("paged,", "").split(",")
  batch, queries, keys, heads, kv_heads, dim = map(int, sizes)
  page = PAGE if "paged" in case else keys
  pages = batch, keys // page
  chip = getattr(config, KERNELS[target].upper())
  if case.endswith("smem"):
    chip = dataclasses.replace(chip, register_weights=False)
  module = importlib.import_module(
    f"pallas_kernels.range_attention.mosaic_{KERNELS[target]}"
  )
  pool = jax.ShapeDtypeStruct(
    (math.prod(pages), page, kv_heads, dim), jnp.bfloat16
  )
  q = jax.ShapeDtypeStruct((batch, queries, heads, dim), jnp.bfloat16)
  ends, table = (
    jax.ShapeDtypeStruct(x, jnp.int32) for x in ((batch, queries), pages)
  )

  def two_layers(q, k, v, ends, table):
    for _ in range(2):
      q, lse = module.range_attention(q, k, v, ends, table, chip=chip)
    return q, lse

  done = aot.compile_for(target, two_layers, q, pool, pool, ends, table)
  once, layers = kernels(done.as_text())
  cut = mosaic.work(chip, q.shape, (batch, keys, kv_heads, dim))
  return (
    f"DONE {target} {case}: blocks={kv_heads * cut.blocks} parts={cut.parts}"
    f" stages={cut.stages} once={len(once)} layer={len(layers) / 2:g}"
    f" copies={(once + layers).count('copy')}"
  )


def kernels(text: str) -> tuple[list[str], list[str]]:
  """Kernels of a program that do not need its first argument, and that do."""
  once, layers, reached = [], [], set()
  for line in text.split("\nENTRY")[1].splitlines()[1:]:
    if not (found := re.match(r"\s*(?:ROOT )?%?([\w.-]+) = (.*)", line)):
      continue
    name, rest = found.groups()
    kind = re.findall(r"[\])}] (\w[\w-]*)\(", rest)[0]
    needs = "parameter(0)" in rest or reached & set(
      re.findall(r"%([\w.-]+)", rest)
    )
    if needs:
      reached.add(name)
    if kind in ("fusion", "custom-call", "copy"):
      (layers if needs else once).append(kind)
  return once, layers


if __name__ == "__main__":
  for case in sys.argv[3:]:
    print(compile_one(sys.argv[1], case), flush=True)
