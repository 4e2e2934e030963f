"""Static sizes of the Mosaic kernels, one record per chip."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """What a kernel needs to know of the chip it is compiled for.

  Attributes:
    processors: streaming multiprocessors; the grid is made to fill them.
    rows: rows of queries that one compute warpgroup owns, the M of its MMA.
    block: keys per tile.
    ring_bytes: shared memory of the ring of K and V tiles. Loads in flight
      must cover bandwidth x latency, about 40 KB per processor.
    compute_registers: registers per thread of a compute warpgroup.
    load_registers: registers per thread of the warpgroup that loads.
    register_weights: hand the softmax weights to the second MMA in registers.
      The interpreter cannot, and takes shared memory whatever is said here.
  """

  processors: int
  rows: int
  block: int = 64
  ring_bytes: int = 96 * 1024
  compute_registers: int = 232
  load_registers: int = 40
  register_weights: bool = False


HOPPER = Chip(processors=132, rows=64, register_weights=True)
BLACKWELL = Chip(processors=148, rows=128)
BY_CAPABILITY = {"9.0": HOPPER, "10.0": BLACKWELL}
