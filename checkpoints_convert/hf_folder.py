"""Writes a folder in the released layout, whole or in shards."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from checkpoints_convert.names import Tensor


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
  tensors = {}
  for name, tensor in table.items():
    leaf = params
    for key in tensor.path:
      leaf = leaf[key]
    value = np.asarray(leaf).T if tensor.transposed else np.asarray(leaf)
    tensors[name] = np.ascontiguousarray(value.astype(dtype or value.dtype))
  _write_json(folder / "config.json", config)
  if shards == 1:
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return
  names = list(tensors)
  weight_map = {}
  for i in range(shards):
    file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
    part = {name: tensors[name] for name in names[i::shards]}
    save_file(part, folder / file, {"format": "pt"})
    weight_map |= dict.fromkeys(part, file)
  size = sum(x.nbytes for x in tensors.values())
  _write_json(
    folder / "model.safetensors.index.json",
    {"metadata": {"total_size": size}, "weight_map": weight_map},
  )


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
  save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
  config = {
    "peft_type": "LORA",
    "r": layers[0][0].shape[0],
    "lora_alpha": alpha,
    "target_modules": ["o_proj"],
    "inference_mode": True,
  }
  _write_json(folder / "adapter_config.json", config)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
