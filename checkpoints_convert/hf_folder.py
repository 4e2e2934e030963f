"""Writes folders in the Hugging Face layout, one tensor in memory at a time."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save

from checkpoints_convert.lazy import Lazy
from nemodiff_jax.io.names import Tensor

SINGLE = "model.safetensors"
_CODES = {
  np.dtype(np.float64): "F64",
  np.dtype(np.float32): "F32",
  np.dtype(np.float16): "F16",
  np.dtype(ml_dtypes.bfloat16): "BF16",
  np.dtype(np.int8): "I8",
}


def write_folder(
  folder: str | os.PathLike,
  config: Mapping[str, Any],
  table: Mapping[str, Tensor],
  params: Mapping[str, Any],
  *,
  dtype: Any = None,
  shards: int = 1,
) -> None:
  """Writes config.json and the weights of `params` under their released names.

  Args:
    folder: created if absent; files of the same names are replaced.
    config: content of config.json.
    table: `names.released_tensors` of the model.
    params: parameter tree.
    dtype: numpy dtype to store; None keeps that of the parameters.
    shards: files to spread the tensors over; 1 gives model.safetensors.
  """
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  write_json(folder / "config.json", config)
  tensors = {}
  for name, tensor in table.items():
    leaf: Any = params
    for key in tensor.path:
      leaf = leaf[key]

    def read(leaf=leaf, transposed=tensor.transposed):
      value = np.asarray(leaf).T if transposed else np.asarray(leaf)
      return value.astype(dtype or value.dtype, copy=False)

    tensors[name] = Lazy(tensor.shape, np.dtype(dtype or leaf.dtype), read)
  spread = [dict(list(tensors.items())[i::shards]) for i in range(shards)]
  write_files(folder, named_files(spread))


def named_files(
  parts: list[dict[str, Lazy]],
) -> dict[str, dict[str, Lazy]]:
  """Names the shards: model.safetensors, or model-00001-of-0000N."""
  if len(parts) == 1:
    return {SINGLE: parts[0]}
  return {
    f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors": part
    for i, part in enumerate(parts)
  }


def write_files(folder: Path, files: Mapping[str, Mapping[str, Lazy]]) -> None:
  """Writes the weights: files of tensors, and an index unless it is SINGLE.

  What an older export left of the other form goes, so that nobody reads it.
  """
  single = list(files) == [SINGLE]
  stale = folder / (f"{SINGLE}.index.json" if single else SINGLE)
  if stale.name not in files:
    stale.unlink(missing_ok=True)
  for file, tensors in files.items():
    write_safetensors(folder / file, tensors)
  if single:
    return
  total = sum(x.nbytes for part in files.values() for x in part.values())
  weight_map = {name: file for file, part in files.items() for name in part}
  write_json(
    folder / f"{SINGLE}.index.json",
    {"metadata": {"total_size": total}, "weight_map": weight_map},
  )


def write_safetensors(path: Path, tensors: Mapping[str, Lazy]) -> None:
  """Writes one file: length and text of the header, then the tensors' bytes.

  safetensors' own writer takes all tensors of a file at once; this one holds
  one at a time.
  """
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  end = 0
  for name, tensor in tensors.items():
    start, end = end, end + tensor.nbytes
    header[name] = {
      "dtype": _CODES[tensor.dtype],
      "shape": tensor.shape,
      "data_offsets": [start, end],
    }
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  with path.open("wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
      file.write(bytes_of(tensor.read()))


def bytes_of(value: np.ndarray) -> memoryview:
  """The array's bytes in C order; not copied where they lie so already."""
  return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data


def write_lora(
  folder: str | os.PathLike,
  layers: list[tuple[np.ndarray, np.ndarray]],
  alpha: float,
) -> None:
  """Writes a PEFT folder with LoRA on o_proj.

  Args:
    folder: created if absent.
    layers: (A [r, N * H], B [D, r]) of each layer, unscaled.
    alpha: the term is alpha / r * B A x.
  """
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  tensors = {}
  for i, (a, b) in enumerate(layers):
    stem = f"base_model.model.encoder.layers.{i}.self_attn.o_proj"
    tensors[f"{stem}.lora_A.weight"] = np.ascontiguousarray(a)
    tensors[f"{stem}.lora_B.weight"] = np.ascontiguousarray(b)
  data = save(tensors, {"format": "pt"})  # save_file lets nobody else read it.
  (folder / "adapter_model.safetensors").write_bytes(data)
  config = {
    "peft_type": "LORA",
    "r": layers[0][0].shape[0],
    "lora_alpha": alpha,
    "target_modules": ["o_proj"],
    "inference_mode": True,
  }
  write_json(folder / "adapter_config.json", config)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
  """Writes a JSON object, indented."""
  path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
