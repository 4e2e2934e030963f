"""Static sizes of the Mosaic kernels, one record per chip."""

import dataclasses

from pallas_kernels.chips import CHIPS


@dataclasses.dataclass(frozen=True)
class Chip:
  """What a kernel needs to know of the chip it is compiled for.

  Attributes:
    processors: streaming multiprocessors; the grid is made to fill them.
    rows: rows of queries that one compute warpgroup owns, the M of its MMA.
    block: keys per tile.
    out_bytes: of a row of the output, how much leaves at a time.
    shared_bytes: shared memory of a thread block. What the rest does not need
      is the ring of K and V: loads in flight must cover bandwidth x latency,
      about 40 KB per processor.
    compute_registers: registers per thread of a compute warpgroup.
    load_registers: registers per thread of the warpgroup that loads.
    register_weights: hand the softmax weights to the second MMA in registers.
      The interpreter cannot, and takes shared memory whatever is said here.
  """

  processors: int
  rows: int
  block: int = 64
  out_bytes: int = 256
  shared_bytes: int = 227 * 1024
  compute_registers: int = 232
  load_registers: int = 40
  register_weights: bool = False


HOPPER = Chip(processors=CHIPS["h200"].cores, rows=64, register_weights=True)
BLACKWELL = Chip(processors=CHIPS["b200"].cores, rows=128, out_bytes=64)
