"""Tensors of an Orbax folder, restored one by one and checked."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nemodiff_jax.errors import UserError
from nemodiff_jax.io.names import Tensor, released_name
from nemodiff_jax.io.tensors import FLOATS, bare_name

PARAMS = "params"  # The tree of the model.
OTHER = "other"  # Tensors beside it, such as an image tower, by their names.
MANIFEST = "conversion.json"


@dataclasses.dataclass(frozen=True)
class _Leaf:
  item: Path
  path: tuple[str, ...]
  shape: tuple[int, ...]
  dtype: np.dtype
  transposed: bool


class OrbaxTensors:
  """The tensors of an Orbax folder, named and shaped as in Hugging Face's.

  Attributes:
    files: name of each tensor -> the Orbax item that holds it.
  """

  def __init__(self, folder: Path, table: Mapping[str, Tensor]):
    self._leaves = dict(_leaves(folder, table))
    self.files = {name: leaf.item for name, leaf in self._leaves.items()}

  def shape(self, name: str) -> tuple[int, ...]:
    """Shape of a tensor in the Hugging Face layout."""
    leaf = self._leaves[name]
    return leaf.shape[::-1] if leaf.transposed else leaf.shape

  def dtype(self, name: str) -> np.dtype:
    """Dtype of a tensor.

    Raises:
      UserError: it is neither float nor int8 with a scale.
    """
    leaf = self._leaves[name]
    int8 = leaf.dtype == np.int8 and f"{name}_scale" in self.files
    if not int8 and leaf.dtype not in FLOATS.values():
      raise UserError(
        f"{leaf.item}: tensor {name!r} should be of floats, got {leaf.dtype};"
        " quantised checkpoints of this kind are not supported."
      )
    return leaf.dtype

  def read(
    self, names: list[str], sliced: bool = False
  ) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the named tensors, one in memory at a time, `sliced` or not.

    Raises:
      UserError: data that cannot be read, or a tensor that is not float.
    """
    for name in names:
      leaf = self._leaves[name]
      self.dtype(name)
      value = _restore(name, leaf)
      yield name, value.T if leaf.transposed else value


def is_orbax(folder: Path) -> bool:
  """Whether a checkpoint folder holds its weights in Orbax's format."""
  return (folder / PARAMS / "_METADATA").exists()


def read_manifest(folder: Path) -> dict[str, dict[str, str]]:
  """Name of each tensor -> its file and sha256; {} where none was written.

  Raises:
    UserError: it cannot be read.
  """
  path = folder / MANIFEST
  if not path.exists():
    return {}
  try:
    given = json.loads(path.read_text(encoding="utf-8"))["tensors"]
    return {
      name: {"file": bare_name(t["file"]), "sha256": str(t["sha256"])}
      for name, t in given.items()
    }
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(
      f"{path}: expected JSON with tensors, each with its file and sha256"
      f" ({type(e).__name__}: {e})."
    ) from e


def whole_manifest(
  folder: Path, held: Collection[str]
) -> dict[str, dict[str, str]]:
  """The manifest of a folder that still holds every tensor of it.

  Raises:
    UserError: it cannot be read, or names a tensor that is not held.
  """
  manifest = read_manifest(folder)
  lost = [name for name in manifest if name not in held]
  if lost:
    raise UserError(
      f"{folder}: {len(lost)} tensors of {MANIFEST} are missing, first"
      f" {lost[0]!r}; copy or convert it again."
    )
  return manifest


def orbax_package(item: Path) -> Any:
  """The package orbax.checkpoint.

  Raises:
    UserError: it is not installed.
  """
  try:
    import orbax.checkpoint
  except ImportError as e:
    raise UserError(
      f"{item}: for Orbax checkpoints, install nemodiff-jax[convert]."
    ) from e
  return orbax.checkpoint


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Keeps Orbax's account of every step out of the log; warnings stay.

  Its errors do not: they are raised too.
  """
  logger = logging.getLogger("absl")

  def keep(record: logging.LogRecord) -> bool:
    return record.levelno == logging.WARNING or "orbax" not in record.pathname

  logger.addFilter(keep)
  try:
    yield
  finally:
    logger.removeFilter(keep)


def _leaves(
  folder: Path, table: Mapping[str, Tensor]
) -> Iterator[tuple[str, _Leaf]]:
  released = {tensor.path: name for name, tensor in table.items()}
  own = {released_name(name): name for name in read_manifest(folder)}
  for item in (folder / PARAMS, folder / OTHER):
    if not item.exists():
      continue
    for path, meta in _metadata(item):
      name = released.get(path, ".".join(path))
      yield (
        own.get(name, name),
        _Leaf(
          item,
          path,
          tuple(meta.shape),
          np.dtype(meta.dtype),
          name in table and table[name].transposed,
        ),
      )


def _metadata(item: Path) -> list[tuple[tuple[str, ...], Any]]:
  """Path and metadata of each array of an Orbax item."""
  import jax

  ocp = orbax_package(item)
  try:
    with quiet(), ocp.PyTreeCheckpointer() as checkpointer:
      tree = checkpointer.metadata(item.absolute()).item_metadata.tree
  except Exception as e:  # Orbax and TensorStore raise many; all mean this.
    raise UserError(_unreadable(item, e)) from e
  leaves = jax.tree_util.tree_leaves_with_path(
    tree, is_leaf=lambda x: hasattr(x, "shape")
  )
  return [(tuple(str(k.key) for k in path), meta) for path, meta in leaves]


def _restore(name: str, leaf: _Leaf) -> np.ndarray:
  """One array of an Orbax item, without reading the others."""
  ocp = orbax_package(leaf.item)
  item: Any = 0
  args: Any = ocp.RestoreArgs(restore_type=np.ndarray)
  for key in reversed(leaf.path):
    item, args = {key: item}, {key: args}
  try:
    with quiet(), ocp.PyTreeCheckpointer() as checkpointer:
      tree = checkpointer.restore(
        leaf.item.absolute(),
        args=ocp.args.PyTreeRestore(
          item=item, restore_args=args, partial_restore=True
        ),
      )
  except Exception as e:  # As above.
    raise UserError(f"tensor {name!r}: {_unreadable(leaf.item, e)}") from e
  for key in leaf.path:
    tree = tree[key]
  return np.asarray(tree)


def _unreadable(item: Path, error: Exception) -> str:
  first = str(error).splitlines()[0] if str(error) else type(error).__name__
  return (
    f"{item}: not a complete Orbax checkpoint ({first}); copy or convert it"
    " again."
  )
