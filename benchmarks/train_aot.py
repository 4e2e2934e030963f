"""Training steps compiled for GPUs that are not there: memory and traffic.

    JAX_PLATFORMS=cpu python -m benchmarks.train_aot --part=fit|wire|guard

fit: a whole step (gradient, clip, AdamW) of 3B, 8B and 14B at the published
batch of 512 rows of 4096 on 8, 32 and 256 GPUs of 80 GB: bytes per device, by
XLA's own account, for each mesh. wire: bytes a device sends per layer, forward
and backward. guard: what the guard against bad steps costs. Compiled for H200;
not run on a GPU.
"""

import argparse
import dataclasses
import os
import time
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh, NamedSharding

from benchmarks.collectives import Collective, collectives
from nemodiff_jax.nn.config import ModelConfig, preset
from nemodiff_jax.nn.model import abstract_params
from pallas_kernels import aot
from train import mesh
from train.corruption import Canvas, Corruption, Rows
from train.losses import Joint
from train.optimizer import make_optimizer
from train.stack import Stack, stack_layers
from train.step import (
  Plan,
  _gradients,
  init_state,
  loss_joint,
  make_step,
  prepare_joint,
)

GIB, CHIP, CARD = 2**30, "h200", 80e9
LENGTH, BATCH, BLOCK = 4096, 512, 64
ADAMW = ml_collections.ConfigDict(
  dict(
    name="adamw", lr=1e-5, final_lr=3e-6, warmup=125, decay=0.2, b1=0.9,
    b2=0.95, eps=1e-8, weight_decay=0.1, clip=1.0,
  )
)  # fmt: skip
MESHES = {
  8: ((1, 8, 1),),
  32: ((1, 32, 1), (4, 8, 1)),
  256: ((32, 8, 1), (8, 8, 4)),
}


@dataclasses.dataclass(frozen=True)
class Job:
  """A step of a model on a mesh.

  Attributes:
    config: the model.
    sizes: of the mesh.
    rows: of the batch.
    accumulate: microbatches.
    length: clean tokens of a row.
    packed: whether rows hold several documents.
  """

  config: ModelConfig
  sizes: tuple[int, int, int]
  rows: int
  accumulate: int = 1
  length: int = LENGTH
  packed: bool = True

  @property
  def grid(self) -> Mesh:
    """Devices that are not there."""
    return aot.make_mesh(CHIP, self.sizes, mesh.AXES)

  @property
  def plan(self) -> Plan:
    """Bfloat16, full remat, the published corruption."""
    c = self.config
    return Plan(
      Stack(c, jnp.dtype(jnp.bfloat16), "full", self.grid),
      Joint(),
      Corruption(),
      Canvas(self.length, BLOCK, c.mask_id or 0, c.eos_ids),
      self.accumulate,
    )

  def params(self) -> Any:
    """Shapes of the masters, layers stacked, on the mesh."""
    shapes = abstract_params(self.config)
    stacked = jax.eval_shape(
      lambda p: stack_layers(p, self.config.num_layers), shapes
    )
    return self.on_mesh(stacked)

  def on_mesh(self, tree: Any) -> Any:
    """Shapes with their shardings."""
    put = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    return jax.tree.map(put, tree, mesh.shardings(self.grid, tree))

  def batch(self) -> tuple[Rows, Any]:
    """Shapes of the rows, and of the hard tokens."""
    where = NamedSharding(self.grid, mesh.ROWS)
    shape: Any = lambda dtype, *s: jax.ShapeDtypeStruct(
      s, dtype, sharding=where
    )
    b, n = self.rows, self.length
    rows = Rows(
      tokens=shape(jnp.int32, b, n),
      supervised=shape(jnp.bool_, b, n),
      start=shape(jnp.int32, b, n) if self.packed else None,
      example=shape(jnp.int32, b),
    )
    return rows, jax.ShapeDtypeStruct((self.config.vocab_size,), jnp.bool_)


def gradient(job: Job) -> Any:
  """The compiled gradient of the joint loss, without an optimiser."""
  plan, params = job.plan, job.params()

  def run(params, rows, hard):
    key = plan.key(jnp.int32(0))
    batch = prepare_joint(plan, key, rows, hard)
    return _gradients(plan, loss_joint, params, {}, batch)[0]

  program = jax.jit(run, out_shardings=mesh.shardings(job.grid, params))
  return aot.compile_for(CHIP, program, params, *job.batch(), mesh=job.grid)


def step(job: Job) -> Any:
  """The compiled step."""
  params = job.params()
  optimizer = make_optimizer(ADAMW, 12_500, params)
  state = jax.eval_shape(lambda p: init_state(optimizer, p), params)
  rows, hard = job.batch()
  args = job.on_mesh(state), {}, rows, hard
  program = make_step(
    job.plan, optimizer, layout=mesh.shardings(job.grid, state)
  )
  return aot.compile_for(CHIP, program, *args, mesh=job.grid)


def peak_bytes(compiled: Any) -> int:
  """Bytes a device needs: what goes in, comes out, and is in between."""
  m = compiled.memory_analysis()
  new = m.output_size_in_bytes - m.alias_size_in_bytes
  return m.argument_size_in_bytes + new + m.temp_size_in_bytes


def in_layers(compiled: Any, layers: int) -> list[Collective]:
  """Collectives of the loops over layers."""
  return [c for c in collectives(compiled.as_text()) if c.trips == layers]


def fit() -> None:
  print("| model | GPUs | data, fsdp, tensor | microbatches | state, GiB |"
        " temporary, GiB | in all, GB | fits 80 GB |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
  for size in ("3b", "8b", "14b"):
    for count, meshes in MESHES.items():
      for sizes in meshes:
        job = Job(preset(size), sizes, BATCH, BATCH // (sizes[0] * sizes[1]))
        compiled = step(job)
        memory, peak = compiled.memory_analysis(), peak_bytes(compiled)
        print(
          f"| {size} | {count} | {', '.join(map(str, sizes))} |"
          f" {job.accumulate} | {memory.argument_size_in_bytes / GIB:.1f} |"
          f" {memory.temp_size_in_bytes / GIB:.1f} | {peak / 1e9:.1f} |"
          f" {'yes' if peak < 0.93 * CARD else 'no'} |",
          flush=True,
        )


def wire() -> None:
  for sizes in ((1, 8, 1), (1, 8, 4), (2, 4, 1)):
    job = Job(preset("8b"), sizes, sizes[0] * sizes[1])
    if sizes[2] > 1:
      job = dataclasses.replace(job, rows=4 * job.rows)
    compiled = gradient(job)
    temp = compiled.memory_analysis().temp_size_in_bytes
    found = in_layers(compiled, job.config.num_layers)
    print(f"8b, mesh {sizes}, {job.rows} rows: temporary {temp / GIB:.2f} GiB")
    for kind in sorted({c.kind for c in found}):
      size = sum(c.wire_bytes for c in found if c.kind == kind)
      print(f"  {kind}: {size / 1e9:.3f} GB sent per layer")
    total = sum(c.wire_bytes for c in found)
    print(f"  forward and backward: {total / 1e9:.3f} GB per layer", flush=True)


def guard() -> None:
  job = Job(preset("3b"), (1, 1, 1), 1)
  memory = step(job).memory_analysis()
  print(
    f"3b, one device, one row: state {memory.argument_size_in_bytes / GIB:.2f}"
    f" GiB, temporary {memory.temp_size_in_bytes / GIB:.2f} GiB"
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parts = {"fit": fit, "wire": wire, "guard": guard}
  parser.add_argument("--part", choices=parts, required=True)
  print(f"{time.strftime('%Y-%m-%d')}, jax {jax.__version__}, H200, compiled")
  parts[parser.parse_args().part]()


if __name__ == "__main__":
  main()
