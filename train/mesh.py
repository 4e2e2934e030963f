"""The mesh, and the one table that says how each array lies on it.

Axes: 'data' (copies of the model), 'fsdp' (rows of the batch, and parameters
split along them), 'tensor' (heads, ffn and vocabulary).
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nemodiff_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
ROWS = P(("data", "fsdp"))  # Of a batch.
# The first pattern found in a parameter's path decides; layers are stacked.
RULES = (
  (r"lora", P()),
  (r"embed_tokens", P("tensor", "fsdp")),
  (r"(q|k|v|gate|up)_proj/kernel", P(None, "fsdp", "tensor")),
  (r"(o|down)_proj/kernel", P(None, "tensor", "fsdp")),
  (r"diffusion_head/kernel", P("fsdp", "tensor")),
)


def make_mesh(sizes: Sequence[int]) -> Mesh:
  """A mesh over every device of every process.

  Args:
    sizes: devices along each of AXES; one of them may be -1: the rest.

  Raises:
    UserError: the sizes do not multiply to the number of devices.
  """
  devices, known = jax.device_count(), 1
  for size in sizes:
    known *= size if size > 0 else 1
  sizes = [size if size > 0 else devices // known for size in sizes]
  product = sizes[0] * sizes[1] * sizes[2]
  if product != devices:
    raise UserError(
      f"config.mesh: data x fsdp x tensor should be the {devices} devices, got"
      f" {' x '.join(map(str, sizes))}; set one of them to -1 for the rest."
    )
  return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def row_shards(mesh: Mesh) -> int:
  """Parts a batch is split into."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def shardings(mesh: Mesh, tree: Any) -> Any:
  """A sharding for every array (or shape) of a tree, optimiser state included.

  An axis that does not divide a dimension is left out of it.
  """

  def place(path, x) -> NamedSharding:
    name = "/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path)
    spec = next((s for rule, s in RULES if re.search(rule, name)), P())
    if len(spec) > x.ndim:
      spec = P()
    axes = [
      a if a and size % mesh.shape[a] == 0 else None
      for a, size in zip(spec, x.shape, strict=False)
    ]
    return NamedSharding(mesh, P(*axes))

  return jax.tree_util.tree_map_with_path(place, tree)


def place(mesh: Mesh, tree: Any) -> Any:
  """Puts arrays that every process holds on the mesh, each device its part."""

  def put(x, sharding: NamedSharding) -> jax.Array:
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return jax.tree.map(put, tree, shardings(mesh, tree))
