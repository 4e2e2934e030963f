"""Range attention on a GPU, as a ratio to the floor of what was measured.

    python -m benchmarks.attention_gpu                 # on an NVIDIA GPU
    JAX_PLATFORMS=cpu python -m benchmarks.attention_gpu   # compiles only

The floor of a call is max(bytes of the keys and values that are seen / copy
bandwidth, operations / matrix-product rate). A call runs over as many caches
as it takes to pass the L2 cache, one after the other, as the layers of a model
do. Peers: the XLA implementation, and cuDNN by jax.nn.dot_product_attention
with the same mask.
"""

import functools
import math
import os
from collections.abc import Callable
from pathlib import Path

if not any(Path("/dev").glob("nvidia[0-9]*")):
  os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks.decode_aot import CHIPS, in_own_process
from benchmarks.programs import on_device
from nemodiff_jax.evaluate import measure
from pallas_kernels import aot
from pallas_kernels.range_attention import range_attention

HEADS, KV_HEADS, DIM = 32, 8, 128
L2_BYTES = 256 * 2**20  # More than any L2 cache.
# Queries, batch, context, causal within the pass.
CALLS = [
  (t, b, s, t not in (1, 32))
  for b, s in ((1, 4096), (1, 32768), (8, 4096), (8, 32768))
  for t in (1, 32, 72, 272)
]
TOY_CALLS = [(1, 1, 256, False), (32, 2, 512, True)]
_TOY = flags.DEFINE_bool("toy", False, "Tiny calls, to run anywhere.")
_COMPILE_ONLY = flags.DEFINE_bool(
  "compile_only", None, "Compile for H200 and B200; default: where no GPU is."
)


def shapes(t: int, b: int, s: int, layers: int):
  """q, the layers' keys and values, k_end."""
  low = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
  cache = low((b, s, KV_HEADS, DIM))
  ends = jax.ShapeDtypeStruct((b, t), jnp.int32)
  return low((b, t, HEADS, DIM)), (cache,) * layers, (cache,) * layers, ends


def ends_of(t: int, b: int, s: int, causal: bool):
  """One past the last key of each query; the pass's own keys come last."""
  last = s - t + 1 + jnp.arange(t) if causal else jnp.full(t, s)
  return jnp.broadcast_to(last.astype(jnp.int32), (b, t))


def cudnn(q, k, v, k_end):
  """The peer: cuDNN's attention under the same mask."""
  pos = jnp.arange(k.shape[1], dtype=jnp.int32)[None, None, None]
  mask = pos < k_end[:, None, :, None]
  return jax.nn.dot_product_attention(
    q, k, v, mask=mask, implementation="cudnn"
  )


def chained(attend: Callable) -> Callable:
  """One layer after the other, each with the output of the last as queries."""

  def run(q, keys, values, k_end):
    for k, v in zip(keys, values, strict=True):
      q = attend(q, k, v, k_end)
    return q

  return jax.jit(run)


def implementations(toy: bool) -> dict[str, Callable]:
  """What is compared: ours as chosen, the XLA reference, cuDNN."""
  ours = lambda how: lambda *args: range_attention(*args, implementation=how)[0]
  peers = {} if toy else {"cudnn": chained(cudnn)}
  return {"ours": chained(ours(None)), "xla": chained(ours("xla")), **peers}


def least_seconds(floor: measure.Floor, t: int, b: int, s: int) -> float:
  """The floor of a call."""
  operations = 4 * b * t * s * HEADS * DIM
  return floor.seconds(bytes_seen(b, s), operations)


def bytes_seen(b: int, s: int) -> int:
  """Of the keys and values."""
  return 2 * b * s * KV_HEADS * DIM * 2


def call_seconds(f: Callable, call, toy: bool) -> float:
  """Time of a call by one of `implementations`."""
  t, b, s, causal = call
  layers = 2 if toy else min(34, 1 + math.ceil(L2_BYTES / bytes_seen(b, s)))
  args = on_device(shapes(t, b, s, layers)[:3])
  return measure.seconds(f, *args, ends_of(t, b, s, causal)) / layers


def run(toy: bool) -> None:
  """Measures every call."""
  floor = measure.floor(toy)
  print(
    "| T | batch | context | floor us | implementation | us | floor / time |"
  )
  print("|---|---|---|---|---|---|---|")
  for call in TOY_CALLS if toy else CALLS:
    t, b, s, _ = call
    least = least_seconds(floor, t, b, s)
    for name, f in implementations(toy).items():
      taken = call_seconds(f, call, toy)
      print(f"| {t} | {b} | {s} | {least * 1e6:.1f} | {name} |"
            f" {taken * 1e6:.1f} | {least / taken:.3f} |", flush=True)  # fmt: skip


def compile_only() -> None:
  """Shows that every call compiles for both chips; runs nothing."""
  if in_own_process("benchmarks.attention_gpu", CHIPS.value):
    return
  print("no GPU: compiled ahead of time, not run")
  (chip,) = CHIPS.value
  for t, b, s, _ in CALLS:
    f = implementations(toy=True)["ours"]
    memory = aot.compile_for(chip, f, *shapes(t, b, s, 1)).memory_analysis()
    temp = memory.temp_size_in_bytes / 2**20 if memory else float("nan")
    print(f"{chip}: T {t}, batch {b}, context {s}: compiles, temporary"
          f" {temp:.1f} MiB", flush=True)  # fmt: skip


def main(argv):
  """Runs, or compiles where there is no GPU."""
  del argv
  gpu = jax.default_backend() == "gpu"
  only = _COMPILE_ONLY.value if _COMPILE_ONLY.value is not None else not gpu
  if only and not _TOY.value:
    compile_only()
  else:
    run(_TOY.value)


if __name__ == "__main__":
  app.run(main)
