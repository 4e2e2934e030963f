"""Writes parameters as Orbax does, one array in memory at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints_convert.lazy import Lazy, lazy
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.orbax import orbax_package, quiet

_CHUNK_BYTES = 64 * 2**20  # A shard is read without the rest of its array.


def write_params(folder: Path, tree: Mapping[str, Any]) -> None:
  """Writes a tree that Orbax's StandardCheckpointer restores.

  Args:
    folder: must not exist.
    tree: nested dicts; leaves are arrays or `Lazy` ones.

  Raises:
    UserError: Orbax is not installed, or a leaf cannot be read.
    OSError: it cannot be written.
  """
  import jax

  ocp = orbax_package(folder)

  class Handler(ocp.type_handlers.NumpyHandler):
    """Reads a lazy array, writes it, and waits before it reads the next."""

    async def serialize(self, values, infos, args=None):
      for value, info, arg in zip(values, infos, args or (), strict=True):
        for written in await super().serialize([value.read()], [info], [arg]):
          written.result()
      return []

  leaves = jax.tree.map(lambda x: x if isinstance(x, Lazy) else lazy(x), tree)
  chunked = ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES)
  registry = ocp.type_handlers.create_type_handler_registry(
    (Lazy, Handler(deepcopy_host_arrays=False)),
    (jax.Array, ocp.type_handlers.ArrayHandler()),  # Orbax warns without it.
  )
  args = ocp.args.PyTreeSave(
    leaves, save_args=jax.tree.map(lambda _: chunked, leaves)
  )
  try:
    with quiet():
      handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
      with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder.absolute(), args=args)
  except UserError:  # Of a leaf.
    raise
  except ValueError as e:  # TensorStore's, whatever the disk says.
    raise OSError(f"{folder.name}: {e}") from e
