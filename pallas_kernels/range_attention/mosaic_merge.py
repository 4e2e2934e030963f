"""One kernel that merges partial results and writes them in their order.

A warpgroup owns one row of one head. How many partial results it has is known
only at run time: it reads its own, and no others.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.range_attention.mosaic import Work

_AHEAD = 8  # Partial results that a row loads at a time.
_LOW = -1e30  # The least maximum, for rows that see no key.


def merge(
  out: jax.Array,
  lse: jax.Array,
  pieces: jax.Array,
  sizes: Work,
  dtype,
  interpret: plgpu.InterpretGPUParams | None,
) -> tuple[jax.Array, jax.Array]:
  """Merges the partial results of each row.

  Args:
    out: [K, parts, R, H] float32.
    lse: [K, parts, tile], in units of log2.
    pieces: of `mosaic_plan.Plan`.
    sizes: of the call.
    dtype: of the output.
    interpret: runs the kernel on the CPU.

  Returns:
    The output [B, T, N, H], and the natural log-sum-exp [B, T, N].
  """
  lead = sizes.batch, sizes.queries, sizes.heads * sizes.group
  return plgpu.kernel(
    functools.partial(_body, sizes),
    out_type=(
      jax.ShapeDtypeStruct((*lead, sizes.dim), dtype),
      jax.ShapeDtypeStruct(lead, jnp.float32),
    ),
    grid=(sizes.heads, sizes.queries, sizes.batch),
    grid_names=("head", "query", "batch"),
    num_threads=sizes.group,
    thread_name="member",
    compiler_params=plgpu.CompilerParams(approx_math=True),
    interpret=interpret,
    kernel_name="range_attention_merge",
  )(out, lse, pieces)


def _body(sizes: Work, parts, logs, pieces, out, lse):
  batch, query, head, member = map(
    lax.axis_index, ("batch", "query", "head", "member")
  )
  row = query * sizes.group + member
  tile = batch * sizes.tiles + lax.div(row, sizes.tile)
  row = lax.rem(row, sizes.tile)
  first, count = (pieces[tile, i] * sizes.key_groups for i in range(2))
  layout = _layout(sizes.dim)

  def step(i, carry):
    acc, peak, total = carry
    numbers = [i * _AHEAD + j for j in range(_AHEAD)]
    # Beyond the last: the last once more, with no weight.
    places = [first + lax.min(n, count - 1) for n in numbers]
    values = [
      plgpu.load(parts.at[head, p, row], layout=layout, optimized=False)
      for p in places
    ]
    sums = [
      jnp.where(n < count, logs[head, p, row], -jnp.inf)
      for n, p in zip(numbers, places, strict=True)
    ]
    peak_now = functools.reduce(jnp.maximum, sums, peak)
    weights = [jnp.exp2(x - peak_now) for x in sums]
    decay = jnp.exp2(peak - peak_now)
    acc = acc * decay
    for weight, value in zip(weights, values, strict=True):
      acc += weight * value
    return acc, peak_now, total * decay + sum(weights)

  zeros = plgpu.layout_cast(jnp.zeros((sizes.dim,), jnp.float32), layout)
  start = zeros, jnp.float32(_LOW), jnp.float32(0)
  turns = lax.div(count + _AHEAD - 1, _AHEAD)
  acc, peak, total = lax.fori_loop(0, turns, step, start)
  some = jnp.where(total > 0, total, 1.0)
  at = batch, query, head * sizes.group + member
  out[at] = (acc * (1 / some)).astype(out.dtype)
  value = (peak + jnp.log2(some)) * math.log(2)
  lse[at] = jnp.where(total > 0, value, -jnp.inf)


def _layout(dim: int):
  """Of a row: a value per thread, or copies of 64 of them."""
  if dim % 128:
    return plgpu.Layout.WGMMA.reduce(1)
  return plgpu.Layout.WG_STRIDED((dim,), vec_size=1)
