"""Tables of memory: weights, cache, and the peak of a decode on an H200.

    JAX_PLATFORMS=cpu .venv/bin/python benchmarks/tables.py [--sizes=3b,8b,14b]

Nothing runs: each decoding loop is compiled ahead of time for the chip, and
the peak is its arguments and XLA's plan of temporaries, batch 1 with a cache of
4k positions. --layers compiles fewer layers, since temporaries do not grow with
their number; arguments are always those of all layers. A card fits a decode if
the peak is at most 0.92 of its memory. Needs the extra `aot` (Python 3.12,
Linux).
"""

import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.sharding import Mesh

from nemodiff_jax.decode import driver
from nemodiff_jax.decode.abstract import abstract_decode
from nemodiff_jax.decode.config import decode_config
from nemodiff_jax.decode.memory import param_bytes
from nemodiff_jax.nn.config import ModelConfig, preset
from nemodiff_jax.nn.model import Transformer
from nemodiff_jax.nn.sharding import AXIS
from pallas_kernels import aot

_SIZES = flags.DEFINE_list("sizes", ["3b", "8b", "14b"], "Presets.")
_MODES = flags.DEFINE_list(
  "modes", ["linear_spec", "quadratic_spec"], "To compile."
)
_DEVICES = flags.DEFINE_list("devices", ["1"], "Chips that share a model.")
_LAYERS = flags.DEFINE_integer("layers", None, "To compile; default: all.")
_ATTENTION = flags.DEFINE_string("attention", None, "Implementation.")
CARDS = (24, 48, 80, 141, 192)  # GB
USABLE = 0.92  # The rest is the driver's, the context's and fragments.
PROMPT, NEW = 3840, 128
DTYPE = jnp.dtype("bfloat16")


def peak(config: ModelConfig, mode: str, scheme: str, devices: int) -> int:
  """Bytes on each chip while the loop runs; the state is updated in place."""
  mesh = aot.make_mesh("h200", (devices,), (AXIS,)) if devices > 1 else None
  fewer = min(_LAYERS.value or config.num_layers, config.num_layers)
  program = arguments(
    dataclasses.replace(config, num_layers=fewer), mode, scheme, mesh
  )
  done = aot.compile_for("h200", driver.run, *program, mesh=mesh)
  memory: Any = done.memory_analysis()
  held = sum(
    map(own_bytes, jax.tree.leaves(arguments(config, mode, scheme, mesh)[1:]))
  )
  return held + memory.temp_size_in_bytes


def arguments(config: ModelConfig, mode: str, scheme: str, mesh: Mesh | None):
  """Decoder, weights, state and log of one row with a cache of 4k positions."""
  return abstract_decode(
    Transformer(config, DTYPE, mesh),
    decode_config(config, mode),
    prompt=PROMPT,
    max_new_tokens=NEW,
    scheme=scheme,
    attention=_ATTENTION.value,
  )


def own_bytes(x: jax.ShapeDtypeStruct) -> int:
  """Bytes of one device's part of an argument."""
  shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
  return math.prod(shape) * jnp.dtype(x.dtype).itemsize


def card(needed: float, count: int) -> str:
  """The smallest card, in GB, that holds so many bytes; `count` of them."""
  found = next((f"{c}" for c in CARDS if needed <= USABLE * c * 1e9), "none")
  return found if count == 1 else f"{count} x {found}"


def main(_) -> None:
  print(
    f"{time.strftime('%Y-%m-%d')}, jax {jax.__version__}, ahead of time for an"
    f" H200 (layers compiled: {_LAYERS.value or 'all'}), bfloat16 cache, batch 1,"
    f" {PROMPT} + {NEW} tokens; GB = 1e9 bytes\n"
  )
  modes = _MODES.value
  print(
    "| size | weights | GB | cache per 1k tokens, MB | chips | "
    + " | ".join(f"peak of {mode}, GB" for mode in modes)
    + " | smallest card, GB |"
  )
  print("|---" * (6 + len(modes)) + "|")
  for size in _SIZES.value:
    config = preset(size)
    positions = config.num_layers * config.num_kv_heads * config.head_dim
    cache = 1000 * 2 * positions * DTYPE.itemsize
    for scheme, name in (("none", "bf16"), ("int8", "int8")):
      for devices in map(int, _DEVICES.value):
        weights = param_bytes(config, DTYPE, scheme) / devices
        peaks = [peak(config, mode, scheme, devices) for mode in modes]
        cells = " | ".join(f"{p / 1e9:.2f}" for p in peaks)
        print(
          f"| {size.upper()} | {name} | {weights / 1e9:.2f} |"
          f" {cache / devices / 1e6:.0f} | {devices} | {cells} |"
          f" {card(max(peaks), devices)} |",
          flush=True,
        )


if __name__ == "__main__":
  app.run(main)
