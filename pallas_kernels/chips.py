"""GPUs that programs are compiled and predicted for, from their data sheets."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """What a compiler and a roofline have to know of a GPU.

  Attributes:
    name: as the driver says it.
    capability: (major, minor) compute capability.
    cores: streaming multiprocessors.
    bandwidth: of the memory, bytes per second.
    memory: bytes.
    l2: bytes of the L2 cache.
    clock: GHz.
    shared: bytes of shared memory per multiprocessor; 1 KiB less per block.
    flops: dense bfloat16 operations per second of the tensor cores.
  """

  name: str
  capability: tuple[int, int]
  cores: int
  bandwidth: int
  memory: int
  l2: int
  clock: float
  shared: int
  flops: float


CHIPS = {
  "h200": Chip(
    "NVIDIA H200", (9, 0), 132, 4_800_000_000_000, 151_397_597_184,
    52_428_800, 1.98, 233_472, 989e12,
  ),
  "b200": Chip(
    "NVIDIA B200", (10, 0), 148, 7_672_320_000_000, 191_514_411_008,
    132_644_864, 1.965, 233_472, 2250e12,
  ),
  "b300": Chip(
    "NVIDIA B300 SXM6 AC", (10, 3), 158, 7_936_000_000_000, 297_021_865_984,
    135_528_448, 1.965, 233_472, 2250e12,
  ),
  "a100": Chip(
    "NVIDIA A100-SXM4-80GB", (8, 0), 108, 2_039_000_000_000, 85_174_583_296,
    41_943_040, 1.41, 167_936, 312e12,
  ),
}  # fmt: skip
