"""The floors of a device, and how long a program takes on it."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

REPEATS = 7


@dataclasses.dataclass(frozen=True)
class Floor:
  """What the device was measured to do.

  Attributes:
    bandwidth: of a copy, bytes read and written per second.
    flops: of a large product, operations per second.
  """

  bandwidth: float
  flops: float

  def seconds(self, read: float, operations: float) -> float:
    """The least time to move so many bytes and do so many operations."""
    return max(read / self.bandwidth, operations / self.flops)


def seconds(f: Callable, *args: Any) -> float:
  """Median time of f(*args), compiled before."""
  jax.block_until_ready(f(*args))
  times = []
  for _ in range(REPEATS):
    start = time.perf_counter()
    jax.block_until_ready(f(*args))
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def floor(toy: bool = False, dtype: str = "bfloat16") -> Floor:
  """Measures copy bandwidth and matrix-product rate; prints both.

  Args:
    toy: with small arrays, which says little of a GPU.
    dtype: of the product.
  """
  count, side, turns = (2**20, 256, 2) if toy else (2**30, 8192, 20)

  @jax.jit
  def copy(x):
    return jax.lax.fori_loop(0, turns, lambda _, x: x + 1, x)

  @jax.jit
  def product(a, b):
    for _ in range(turns):
      a = a @ b
    return a

  x = jnp.zeros(count, jnp.bfloat16)
  bandwidth = 2 * x.nbytes * turns / seconds(copy, x)
  a = jnp.ones((side, side), dtype) / side
  flops = 2 * side**3 * turns / seconds(product, a, a)
  device = jax.devices()[0]
  print(f"{device.device_kind}, jax {jax.__version__}")
  print(f"measured: copy {bandwidth / 1e9:.0f} GB/s, {dtype} product"
        f" {flops / 1e12:.1f} TFLOP/s")  # fmt: skip
  return Floor(bandwidth, flops)
