"""Range attention for Hopper (sm_90a): TMA ring, wgmma, three warpgroups.

Two warpgroups compute and one loads. With more than 64 rows (T * G) the two
own 64 rows each and share every tile of keys; with fewer, as for one token at
a time, each takes every second tile and keeps its own softmax.

What bounds it on an H200 (4.8 TB/s, 989 Tflop/s in bfloat16: 206 operations
per byte): every key costs 4 H bytes and 4 H operations per row of its head,
so up to about 200 rows per key head (T = 50 with G = 4) memory bounds the
kernel, and beyond it the MMAs do.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.range_attention import mosaic_block as block
from pallas_kernels.range_attention.config import HOPPER, Chip
from pallas_kernels.range_attention.mosaic_item import turns

_TILE = plgpu.Layout.WGMMA
_ROW = plgpu.Layout.WGMMA.reduce(1)


@functools.partial(jax.jit, static_argnames=("chip", "interpret"))
def range_attention(
  q: Float[Array, "B T N H"],
  k: Float[Array, "P page K H"],
  v: Float[Array, "P page K H"],
  k_end: Int[Array, "B T"],
  table: Int[Array, "B M"],
  *,
  chip: Chip = HOPPER,
  interpret: plgpu.InterpretGPUParams | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
  """See `api.range_attention`; the arguments are taken as checked.

  Args:
    q: queries, bfloat16; H is 64 or 128.
    k: keys; N / K is 1 to 8. A page holds whole tiles, or all keys of a row:
      then their number is a multiple of 8.
    v: values.
    k_end: one past the last key of each query, int32; above S means S.
    table: pages of each row, int32.
    chip: static sizes.
    interpret: runs the kernel on the CPU, with its races where asked for.

  Returns:
    The output in the dtype of q, and the log-sum-exp in float32.

  Raises:
    NotImplementedError: see `mosaic.unsupported`.
  """
  by_registers = chip.register_weights and interpret is None
  more = lambda _: {"weights": None} if by_registers else {}
  return block.launch(_compute, more, chip, q, k, v, k_end, table, interpret)


def _compute(
  sizes, item, place, q, ends, out, lse, ring,
  queries, sums, logs, q_full, q_free, weights,
):  # fmt: skip
  """Attends from 64 rows to the tiles of one warpgroup."""
  mine = lax.axis_index(block.THREADS)
  sums, logs = sums.at[mine], logs.at[mine]
  weights = None if weights is None else weights.at[mine]
  queries = block.fetch(q, queries, q_full, place)
  rows, keys = queries.shape[0], ring.k.shape[1]
  limit = plgpu.load(ends.at[place.ends], layout=_ROW, optimized=False)
  shape = rows, keys
  column = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=_TILE)

  def multiply(width, a, b):
    def run(acc):
      plgpu.wgmma(acc, a, b)
      return acc[...]

    acc = plgpu.ACC((rows, width), jnp.float32)
    return pl.run_scoped(run, acc)

  def step(masked, j, carry):
    acc, peak, total = carry
    i = place.turn + j * sizes.key_groups
    slot = lax.rem(item.done + i, sizes.stages)
    plgpu.barrier_wait(ring.k_full.at[slot])
    scores = multiply(keys, queries, ring.k.at[slot].transpose((1, 0)))
    plgpu.barrier_arrive(ring.k_free.at[slot])
    mask = None
    if masked:
      left = limit - (item.first + i) * keys
      mask = column < lax.broadcast_in_dim(left, shape, [0])
    p, decay, peak, total = block.softmax(scores, peak, total, sizes.dim, mask)
    p = p.astype(queries.dtype)
    if weights is not None:
      weights[...] = p
      plgpu.commit_smem()
      p = weights
    plgpu.barrier_wait(ring.v_full.at[slot])
    added = multiply(sizes.dim, p, ring.v.at[slot])
    plgpu.barrier_arrive(ring.v_free.at[slot])
    return (
      acc * lax.broadcast_in_dim(decay, acc.shape, [0]) + added,
      peak,
      total,
    )

  full = lambda shape, value, layout: plgpu.layout_cast(
    jnp.full(shape, value, jnp.float32), layout
  )
  carry = (
    full((rows, sizes.dim), 0.0, _TILE),
    full((rows,), block.FLOOR, _ROW),
    full((rows,), 0.0, _ROW),
  )
  middle, count = turns(item, place.turn, sizes.key_groups)
  carry = lax.fori_loop(0, middle, functools.partial(step, False), carry)
  carry = lax.fori_loop(middle, count, functools.partial(step, True), carry)
  block.release(q_free, place)
  acc, peak, total = carry
  some = jnp.where(total > 0, total, 1.0)
  acc = acc / lax.broadcast_in_dim(some, acc.shape, [0])
  block.store(
    lambda at, width: acc[:, at : at + width],
    block.log_sum(peak, total, sizes.dim), sums, logs, out, lse, place, sizes.dim,
  )  # fmt: skip
