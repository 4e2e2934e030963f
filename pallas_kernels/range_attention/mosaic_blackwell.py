"""Range attention for Blackwell (sm_100a, sm_103a): TMA ring, tcgen05, TMEM.

Two warpgroups compute, with 128 rows (T * G) each, and one loads. The scores
and the output of a warpgroup stay in tensor memory. Four threads share a row,
so a row's maximum and sum take shuffles. All MMAs queue for one tensor core,
in the order they are issued: what overlaps with the softmax of a warpgroup are
the MMAs of the other. With at most 128 rows the two take turns over the tiles
of keys.

What bounds it on a B200 (7.7 TB/s, 2250 Tflop/s in bfloat16: 293 operations
per byte): every key costs 4 H bytes and 4 H operations per row of its head,
so up to about 290 rows memory is the floor. Above one block of 128 rows the
exponentials, 16 per clock and multiprocessor, come before the MMAs.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.range_attention import mosaic
from pallas_kernels.range_attention import mosaic_block as block
from pallas_kernels.range_attention.config import BLACKWELL, Chip
from pallas_kernels.range_attention.mosaic_item import turns

_TILE = plgpu.Layout.TCGEN05
_ROW = plgpu.Layout.TCGEN05.reduce(1)
_PIECE = 32  # Columns of the output held in registers at a time.


@functools.partial(jax.jit, static_argnames=("chip", "interpret"))
def range_attention(
  q: Float[Array, "B T N H"],
  k: Float[Array, "P page K H"],
  v: Float[Array, "P page K H"],
  k_end: Int[Array, "B T"],
  table: Int[Array, "B M"],
  *,
  chip: Chip = BLACKWELL,
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

  def more(sizes: mosaic.Work):
    memory = lambda width: plgpu.TMEM(
      (chip.rows, mosaic.WARPGROUPS * width), jnp.float32
    )
    done = plgpu.Barrier(
      num_barriers=mosaic.WARPGROUPS, orders_tensor_core=True
    )
    return {
      "scores": memory(chip.block), "acc": memory(sizes.dim),
      "scored": done, "summed": done,
    }  # fmt: skip

  return block.launch(_compute, more, chip, q, k, v, k_end, table, interpret)


def _compute(
  sizes, item, place, q, ends, out, lse, ring,
  queries, weights, sums, logs, scores, acc, q_full, q_free, scored, summed,
):  # fmt: skip
  """Attends from 128 rows to the tiles of one warpgroup."""
  mine = lax.axis_index(block.THREADS)
  weights, sums, logs, scored, summed = (
    x.at[mine] for x in (weights, sums, logs, scored, summed)
  )
  queries = block.fetch(q, queries, q_full, place)
  rows, keys = weights.shape
  scores = scores.at[:, pl.ds(mine * keys, keys)]
  part = lambda at, width: acc.at[:, pl.ds(mine * sizes.dim + at, width)]
  limit = plgpu.load(ends.at[place.ends], layout=_ROW, optimized=False)
  column = plgpu.broadcasted_iota(jnp.int32, (rows, keys), 1, layout=_TILE)

  def read(ref):
    value = plgpu.async_load_tmem(ref, layout=_TILE)
    plgpu.wait_load_tmem()
    return value

  def finish(i):
    """Waits for the second MMA of tile i, and frees its V."""
    plgpu.barrier_wait(summed)
    plgpu.barrier_arrive(ring.v_free.at[lax.rem(item.done + i, sizes.stages)])

  def step(masked, j, carry):
    peak, total = carry
    i = place.turn + j * sizes.key_groups
    slot = lax.rem(item.done + i, sizes.stages)
    plgpu.barrier_wait(ring.k_full.at[slot])
    plgpu.tcgen05_mma(
      scores, queries, ring.k.at[slot].transpose((1, 0)), scored,
      accumulate=False,
    )  # fmt: skip
    plgpu.barrier_wait(scored)
    plgpu.barrier_arrive(ring.k_free.at[slot])
    mask = None
    if masked:
      left = limit - (item.first + i) * keys
      mask = column < lax.broadcast_in_dim(left, (rows, keys), [0])
    p, decay, peak, total = block.softmax(
      read(scores), peak, total, sizes.dim, mask
    )

    @pl.when(j > 0)
    def _():
      finish(i - sizes.key_groups)
      for at in range(0, sizes.dim, _PIECE):
        old = read(part(at, _PIECE))
        new = old * lax.broadcast_in_dim(decay, old.shape, [0])
        plgpu.async_store_tmem(part(at, _PIECE), new)
      plgpu.commit_tmem()

    weights[...] = p.astype(weights.dtype)
    plgpu.commit_smem()
    plgpu.barrier_wait(ring.v_full.at[slot])
    plgpu.tcgen05_mma(
      part(0, sizes.dim), weights, ring.v.at[slot], summed, accumulate=j > 0
    )
    return peak, total

  full = lambda value: plgpu.layout_cast(
    jnp.full((rows,), value, jnp.float32), _ROW
  )
  middle, count = turns(item, place.turn, sizes.key_groups)
  carry = full(block.FLOOR), full(0.0)
  carry = lax.fori_loop(0, middle, functools.partial(step, False), carry)
  carry = lax.fori_loop(middle, count, functools.partial(step, True), carry)
  block.release(q_free, place)
  peak, total = carry
  pl.when(count > 0)(
    lambda: finish(place.turn + (count - 1) * sizes.key_groups)
  )

  def finished(at, width):
    value = read(part(at, width))
    some = lax.broadcast_in_dim(total, value.shape, [0])
    # Nothing was summed where nothing was seen: acc is not even defined.
    return jnp.where(some > 0, value / some, 0.0)

  block.store(
    finished, block.log_sum(peak, total, sizes.dim),
    sums, logs, out, lse, place, sizes.dim,
  )  # fmt: skip
