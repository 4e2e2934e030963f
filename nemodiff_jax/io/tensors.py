"""Tensors of a safetensors folder, read one by one and checked."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from nemodiff_jax.errors import UserError
from nemodiff_jax.io.quantized import method_of_tensor, refusal

FLOATS = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_OTHER_FORMS = {  # Of weights that are not read, and what to do.
  "consolidated*": (
    "Mistral's own layout, which is not read; use the files of the Hugging"
    " Face layout"
  ),
  "adapter_model.*": "a LoRA without its model; give it as --lora",
  "*.gguf": "which checkpoints_convert.ar_to_trimode can convert",
  "*.safetensors": (f"but is not read without an index; download {INDEX} too"),
  "*.bin": "pickled, which is not read; save the model as safetensors",
  "*.pt*": "pickled, which is not read; save the model as safetensors",
}


class TensorFolder:
  """The tensors of one or more safetensors files.

  Attributes:
    files: name of each tensor -> the file that holds it.
  """

  def __init__(self, files: dict[str, Path]):
    self.files = files

  def shape(self, name: str) -> tuple[int, ...]:
    """Shape of a tensor, from the header."""
    with _open(self.files[name]) as file:
      return tuple(file.get_slice(name).get_shape())

  def dtype(self, name: str) -> np.dtype:
    """Dtype of a tensor, from the header.

    Raises:
      UserError: it is neither float nor int8 with a scale.
    """
    with _open(self.files[name]) as file:
      return self._dtype(name, file.get_slice(name).get_dtype())

  def read(
    self, names: list[str], sliced: bool = False
  ) -> Iterator[tuple[str, Any]]:
    """Yields the named tensors, file by file, one in memory at a time.

    As arrays; with `sliced` as what can be indexed, and only then is read.

    Raises:
      UserError: a file that cannot be read, or a tensor that is not float.
    """
    for path in dict.fromkeys(self.files[n] for n in names):
      with _open(path) as file:
        for name in names:
          if self.files[name] != path:
            continue
          lazy = file.get_slice(name)
          self._dtype(name, lazy.get_dtype())
          yield name, lazy if sliced else file.get_tensor(name)

  def _dtype(self, name: str, kind: str) -> np.dtype:
    if kind == "I8" and f"{name}_scale" in self.files:
      return np.dtype(np.int8)
    method = method_of_tensor(name, kind) if kind not in FLOATS else None
    if method is not None:
      raise UserError(
        f"{self.files[name]}: tensor {name!r} is {refusal(method)}."
      )
    if kind not in FLOATS:
      raise UserError(
        f"{self.files[name]}: tensor {name!r} should be one of"
        f" {sorted(FLOATS)}, got {kind}; quantised checkpoints of this"
        " kind are not supported."
      )
    return FLOATS[kind]


def open_tensors(folder: Path) -> TensorFolder:
  """Finds the tensors of a checkpoint folder: one file, or an index of shards.

  Where both are there the one file counts, as for transformers, unless the
  index names it too: an index is left over from other shards.

  Raises:
    UserError: no weights, an unreadable index, or a shard that is missing,
      cut short, or without a tensor that the index places in it.
  """
  index, single = folder / INDEX, folder / SINGLE
  if not is_sharded(folder):
    if single.exists():
      return open_file(single)
    raise UserError(
      f"{folder}: expected {SINGLE} or {INDEX}, found neither{_instead(folder)}."
    )
  files = {n: folder / file for n, file in read_index(index).items()}
  held: dict[Path, set[str]] = {}
  for path in sorted(set(files.values())):
    if not path.exists():
      raise UserError(
        f"{path}: this shard is named in {INDEX} but missing; download it"
        " again."
      )
    held[path] = set(open_file(path).files)
  for name, path in files.items():
    if name not in held[path]:
      raise UserError(
        f"{path}: tensor {name!r} should be here by {INDEX}, but is not."
      )
  return TensorFolder(files)


def read_index(index: Path) -> dict[str, str]:
  """Name of each tensor -> the file that should hold it.

  Raises:
    UserError: it cannot be read, or names something else than files.
  """
  try:
    weight_map = json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"]
    return {name: bare_name(file) for name, file in weight_map.items()}
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(f"{index}: expected JSON with a weight_map ({e}).") from e


def is_sharded(folder: Path) -> bool:
  """Whether the files that count are those of the index."""
  index = folder / INDEX
  if not index.exists() or not (folder / SINGLE).exists():
    return index.exists()
  try:
    return SINGLE in read_index(index).values()
  except UserError:
    return False


def _instead(folder: Path) -> str:
  """What is there in another form, and what to do with it."""
  for pattern, advice in _OTHER_FORMS.items():
    found = sorted(folder.glob(pattern))
    if found:
      return f"; {found[0].name} is there, {advice}"
  return ""


def bare_name(file: str) -> str:
  """The name of a file of tensors.

  Raises:
    ValueError: it leads elsewhere, or is another kind of file.
  """
  if Path(file).name != file or not file.endswith(".safetensors"):
    raise ValueError(f"{file!r} should be the name of a .safetensors file")
  return file


def open_file(path: Path) -> TensorFolder:
  """The tensors of one safetensors file."""
  with _open(path) as file:
    return TensorFolder(dict.fromkeys(file.keys(), path))


def _open(path: Path):
  try:
    return safe_open(path, framework="numpy")
  except (SafetensorError, OSError) as e:
    raise UserError(
      f"{path}: not a complete safetensors file ({e}); it may be cut short:"
      " download it again."
    ) from e
