"""Runs the Triton kernel in Triton's own interpreter, on numpy arrays.

    TRITON_INTERPRET=1 python -m tests.pallas_kernels.interpret_triton IN OUT

IN and OUT are npz files: q, k, v, k_end, table -> out, lse of each share of the
keys.
"""

import sys

import numpy as np
from triton.runtime import interpreter

from pallas_kernels.range_attention.triton import kernel, launch


class Memory:
  """What the interpreter asks of a tensor."""

  def __init__(self, array):
    self.array = array
    self.dtype = str(array.dtype)

  def data_ptr(self):
    return self.array.ctypes.data

  def untyped_storage(self):
    return self

  cpu = untyped_storage

  def new_empty(self, *_, **__):
    return Memory(self.array)

  def set_(self, storage, *_):
    self.array = storage.array

  def copy_(self, other):
    self.array = other.array

  def storage_offset(self):
    return 0

  size = stride = storage_offset


_patch = interpreter._patch_lang_tensor


def _patch_for_numpy(tensor, scope):
  """The interpreter's int(array of one) is an error since numpy 2.4."""
  _patch(tensor, scope)
  scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


def main():
  interpreter._patch_lang_tensor = _patch_for_numpy
  given = np.load(sys.argv[1])
  names = "q", "k", "v", "k_end", "table"
  arrays = [np.ascontiguousarray(given[n]) for n in names]
  grid, sizes = launch(*(given[n].shape for n in ("q", "k", "table")))
  shape = (grid[1], *arrays[0].shape)
  out = np.full(shape, 123.0, np.float32)  # Nothing may stay.
  lse = np.full(shape[:-1], 123.0, np.float32)
  kernel[grid](*map(Memory, (*arrays, out, lse)), **sizes)
  np.savez(sys.argv[2], out=out, lse=lse)


if __name__ == "__main__":
  main()
