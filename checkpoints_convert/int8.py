"""Quantises the items of a conversion, one kernel at a time."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from checkpoints_convert import hf_folder
from checkpoints_convert.convert import Item
from checkpoints_convert.lazy import Lazy
from checkpoints_convert.names import Tensor
from nemodiff_jax.nn.quantize import MARK, quantize_kernel


def quantized(items: Sequence[Item]) -> list[Item]:
  """The items, each kernel as int8 with its scale behind it.

  A kernel is read twice, so that only one is in memory at a time.
  """
  out = []
  for item in items:
    place = item.place
    if place is None or place.path[-1] != "kernel":
      out.append(item)
      continue
    kernel = Lazy(item.value.shape, np.dtype(np.int8), _part(item, "kernel"))
    shape = item.value.shape[:1]
    scale = Lazy(shape, np.dtype(np.float32), _part(item, "scale"))
    where = Tensor((*place.path[:-1], "scale"), shape, False)
    out += [
      dataclasses.replace(item, value=kernel),
      Item(f"{item.name}_scale", item.file, scale, where),
    ]
  return out


def mark(folder: Path) -> None:
  """Writes into a folder's config.json that its kernels are int8."""
  path = folder / "config.json"
  config = json.loads(path.read_text(encoding="utf-8"))
  hf_folder.write_json(path, config | {"quantization_config": MARK})


def _part(item: Item, name: str):
  """Reads the item, and gives its int8 kernel (as stored) or its scale."""

  def read() -> np.ndarray:
    kernel = jnp.asarray(item.value.read().T)
    return np.asarray(quantize_kernel(kernel)[name]).T

  return read
