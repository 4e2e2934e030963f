"""Quantises what a conversion writes, one kernel at a time."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from checkpoints_convert import hf_folder
from checkpoints_convert.lazy import Lazy
from nemodiff_jax.nn.quantize import MARK, quantize_kernel


def quantized(value: Lazy) -> tuple[Lazy, Lazy]:
  """A kernel [out, in] in int8, and its scale [out].

  Each reads the kernel for itself, so that only one is in memory at a time.
  """

  def part(name: str) -> np.ndarray:
    kernel = jnp.asarray(value.read().T)
    return np.asarray(quantize_kernel(kernel)[name]).T

  return (
    Lazy(value.shape, np.dtype(np.int8), lambda: part("kernel")),
    Lazy(value.shape[:1], np.dtype(np.float32), lambda: part("scale")),
  )


def mark(folder: Path) -> None:
  """Writes into a folder's config.json that its kernels are int8."""
  path = folder / "config.json"
  config = json.loads(path.read_text(encoding="utf-8"))
  hf_folder.write_json(path, config | {"quantization_config": MARK})
