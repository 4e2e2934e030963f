"""Quantises what a conversion writes, one kernel at a time."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from checkpoints_convert import hf_folder
from checkpoints_convert.lazy import Lazy, row_blocks
from nemodiff_jax.nn.quantize import MARK, quantize_kernel


def quantized(value: Lazy) -> tuple[Lazy, Lazy]:
  """A kernel [out, in] in int8, and its scale [out].

  Each reads the kernel for itself, so that only one is in memory at a time,
  and rounds it in blocks of output channels, which know nothing of each other.
  """

  def part(name: str, shape: tuple[int, ...], dtype: np.dtype) -> Lazy:
    def read() -> np.ndarray:
      kernel, out = value.read(), np.empty(shape, dtype)
      for rows in row_blocks(value.shape):
        # XLA divides one channel otherwise than many, so never one alone.
        rows = slice(max(0, min(rows.start, len(kernel) - 2)), rows.stop)
        block = quantize_kernel(jnp.asarray(kernel[rows].T))
        out[rows] = np.asarray(block[name]).T
      return out

    return Lazy(shape, dtype, read)

  return (
    part("kernel", value.shape, np.dtype(np.int8)),
    part("scale", value.shape[:1], np.dtype(np.float32)),
  )


def mark(folder: Path) -> None:
  """Writes into a folder's config.json that its kernels are int8."""
  path = folder / "config.json"
  config = json.loads(path.read_text(encoding="utf-8"))
  hf_folder.write_json(path, config | {"quantization_config": MARK})
