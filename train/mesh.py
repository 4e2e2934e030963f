"""The mesh of a run, and how arrays lie on it.

Axes: 'data' (copies of the model), 'fsdp' (rows of the batch, and parameters
split along them), 'tensor' (heads, ffn and vocabulary). Which axis of a matrix
is split by which is said by the one table of `nemodiff_jax.nn.sharding`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from nemodiff_jax.errors import UserError
from nemodiff_jax.nn.sharding import SPLIT, heads_apart

AXES = ("data", "fsdp", "tensor")
ROWS = P(("data", "fsdp"))  # Of a batch.
# Of activations [B, T, D]: between blocks a device holds some positions of its
# rows; a matrix that is split by its outputs reads all of them.
STREAM = P(*ROWS, "tensor", None)
INSIDE = P(*ROWS, None, "tensor")


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
    keys = [str(getattr(k, "key", getattr(k, "name", k))) for k in path]
    name = next((key for key in keys if key in SPLIT), None)
    if name is None or x.ndim < 2:
      return NamedSharding(mesh, P())
    layers = (None,) * (x.ndim - 2)
    return NamedSharding(mesh, _dividing(mesh, layers + SPLIT[name], x))

  return jax.tree_util.tree_map_with_path(place, tree)


def constrain(mesh: Mesh | None, tree: Any) -> Any:
  """A tree of parameters or of a state, laid on the mesh by the table."""
  if mesh is None or mesh.size == 1:
    return tree
  return lax.with_sharding_constraint(tree, shardings(mesh, tree))


def by_rows(mesh: Mesh | None, x: Array) -> Array:
  """An array of a batch, each device holding its rows and no others'."""
  return spread(mesh, x, P(*ROWS, *(None,) * (x.ndim - 1)))


def spread(mesh: Mesh | None, x: Array, spec: P) -> Array:
  """X split by `spec`, less the axes that do not divide it."""
  if mesh is None or mesh.size == 1:
    return x
  spec = _dividing(mesh, tuple(spec), x)
  return lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 2, 3))
def moved(mesh: Mesh | None, x: Array, before: P, after: P) -> Array:
  """X split as `after`; its gradient goes straight back to `before`.

  It lies as `before` at first: a cast before it is not made behind it.
  """
  return spread(mesh, spread(mesh, x, before), after)


moved.defvjp(
  lambda mesh, x, before, after: (moved(mesh, x, before, after), None),
  lambda mesh, before, after, saved, d: (spread(mesh, d, before),),
)


def whole(mesh: Mesh | None, name: str, matrix: Array) -> Array:
  """A layer's matrix, gathered over fsdp; it stays split by tensor.

  Args:
    mesh: of the run; None: one device.
    name: of the matrix in SPLIT.
    matrix: [I, O].
  """
  axes = (axis if axis == "tensor" else None for axis in SPLIT[name])
  return moved(mesh, matrix, P(*SPLIT[name]), P(*axes))


def apart(mesh: Mesh | None, attend: Any, where: Any, kv_heads: int) -> Any:
  """attend(where, q, k, v, memory), by each device for its rows and heads.

  Nothing is exchanged: not even the largest k_end, which bounds its loops.
  """
  if mesh is None or mesh.size == 1:
    return functools.partial(attend, where)
  axis = "tensor" if kv_heads % mesh.shape["tensor"] == 0 else None
  return heads_apart(attend, where, mesh, P(*ROWS, None, axis), ROWS)


def place(mesh: Mesh, tree: Any) -> Any:
  """Puts arrays that every process holds on the mesh, each device its part."""

  def put(x, sharding: NamedSharding) -> jax.Array:
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return jax.tree.map(put, tree, shardings(mesh, tree))


def _dividing(mesh: Mesh, spec: Sequence[Any], x: Any) -> P:
  """The axes of `spec` that split the dimension they stand at, and divide it.

  As XLA says it of its results: a state that comes back must be equal to one
  that went in, or its program would be compiled twice.
  """

  def kept(axes: Any, length: int) -> Any:
    names = axes if isinstance(axes, tuple) else (axes,)
    names = tuple(n for n in names if n and mesh.shape[n] > 1)
    if length % int(np.prod([mesh.shape[n] for n in names], dtype=int)):
      return None
    return names if len(names) > 1 else (names or (None,))[0]

  return P(*map(kept, spec, x.shape))
