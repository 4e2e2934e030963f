"""The decode loop on a GPU, random weights, as ratios to what was measured.

    python -m benchmarks.decode_gpu [--size=8b]        # on an NVIDIA GPU
    JAX_PLATFORMS=cpu python -m benchmarks.decode_gpu  # compiles only
    python -m benchmarks.decode_gpu --size=tiny        # anywhere

1. A pass of 1 and of 32 tokens, against the bytes of the weights; with int8.
2. The loops of ar, linear_spec and quadratic_spec, per pass.
3. Batches of 1 to 128 rows: tokens per second in the whole.

Random weights accept few drafts, so speculative modes are timed per pass; text
per second follows with the published 5.99 tokens per forward.
"""

import dataclasses
import functools
import os
import time
from pathlib import Path

if not any(Path("/dev").glob("nvidia[0-9]*")):
  os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from absl import app, flags
from jax import lax

from benchmarks.decode_aot import CHIPS, compiled, in_own_process
from benchmarks.programs import Program, on_device, weight_bytes
from nemodiff_jax.decode import driver
from nemodiff_jax.decode.passes import block_pass
from nemodiff_jax.decode.state import Picked, Weights
from nemodiff_jax.evaluate import measure
from nemodiff_jax.nn.config import ModelConfig, preset
from nemodiff_jax.nn.model import count_params, head

PUBLISHED = 5.99  # Tokens per forward of linear_spec, 8B, technical report.
PASSES = 16
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_SIZE = flags.DEFINE_string("size", "8b", "3b, 8b, 14b, or tiny.")
_COMPILE_ONLY = flags.DEFINE_bool(
  "compile_only", None, "Compile for H200 and B200; default: where no GPU is."
)


def pass_seconds(program: Program, weights: Weights) -> float:
  """Time of one bare pass: forward, head and argmax, without the mode."""
  decoder = program.decoder

  @functools.partial(jax.jit, donate_argnums=1)
  def run(weights, state):
    def one(_, state):
      causal = jnp.ones_like(state.running)
      hidden, state = block_pass(decoder, weights, state, causal)
      logits = head(decoder.module, weights.params, hidden)
      token = jnp.argmax(logits, -1).astype(jnp.int32)
      return dataclasses.replace(state, block=Picked(token))

    return lax.fori_loop(0, PASSES, one, state)

  plain = dataclasses.replace(weights, lora=None)
  state = [jax.jit(program.begun)()[0]]

  def again():
    state[0] = run(plain, state[0])
    return state[0].nfe

  return measure.seconds(again) / PASSES


def loop_seconds(program: Program, weights: Weights) -> float:
  """Time per pass of the mode's compiled loop."""
  make = jax.jit(program.begun)
  taken = []
  for _ in range(3):  # The first compiles.
    begun = jax.block_until_ready(make())
    before = int(begun[0].nfe[0])
    start = time.perf_counter()
    done = driver.run(program.decoder, weights, *begun)
    done, _ = jax.block_until_ready(done)
    spent = time.perf_counter() - start
    taken.append(spent / (int(done.nfe.max()) - before))
  return min(taken)


def single(model: ModelConfig, floor: measure.Floor, make) -> None:
  """Batch 1: passes and loops against the weight bytes."""
  ar = make(model, "ar")
  spec = make(model, "linear_spec")
  weights = on_device(spec.weights())
  plain = dataclasses.replace(weights, lora=None)
  least = weight_bytes(plain) / floor.bandwidth
  one, many = pass_seconds(ar, plain), pass_seconds(spec, plain)
  print(f"weights {weight_bytes(plain) / 1e9:.2f} GB,"
        f" {count_params(weights.params) / 1e9:.2f} G parameters")  # fmt: skip
  print("| what | ms | ratio | of |")
  print("|---|---|---|---|")

  def row(what, taken, ratio, of):
    print(f"| {what} | {taken * 1e3:.3f} | {ratio:.3f} | {of} |", flush=True)

  row("ar pass", one, least / one, "weight bytes / copy bandwidth, over it")
  row(f"pass of {spec.decoder.block}", many, many / one, "ar pass")
  loop = loop_seconds(ar, plain)
  row("ar loop, per pass", loop, one / loop, "ar pass, over it")
  loop = loop_seconds(spec, weights)
  row("linear_spec loop, per pass", loop, many / loop, "pass, over it")
  print(f"linear_spec at {PUBLISHED} tokens per forward:"
        f" {PUBLISHED / loop:.0f} tok/s")  # fmt: skip
  for size in (8, 16):
    program = make(model, "quadratic_spec", block=size)
    loop = loop_seconds(program, plain)
    queries = size * (size + 1)
    what = f"quadratic_spec loop, C = {size} ({queries} queries), per pass"
    row(what, loop, loop / one, "ar pass")
  small = make(model, "ar", scheme="int8")
  taken = pass_seconds(small, on_device(small.weights()))
  row("int8 ar pass", taken, one / taken, "ar pass, over it")


def batches(model: ModelConfig, floor: measure.Floor, make, sizes) -> None:
  """Throughput of ar and linear_spec over batch sizes."""
  weights = on_device(make(model, "linear_spec").weights())
  plain = dataclasses.replace(weights, lora=None)
  least = weight_bytes(plain) / floor.bandwidth
  print("| mode | batch | ms per pass | floor / time | tok/s in the whole |")
  print("|---|---|---|---|---|")
  for mode, used, per_pass in (
    ("ar", plain, 1.0),
    ("linear_spec", weights, PUBLISHED),
  ):
    for batch in sizes:
      taken = loop_seconds(make(model, mode, batch=batch), used)
      print(f"| {mode} | {batch} | {taken * 1e3:.3f} | {least / taken:.3f} |"
            f" {batch * per_pass / taken:.0f} |", flush=True)  # fmt: skip


def compile_only(model: ModelConfig, make) -> None:
  """Shows that every loop compiles for both chips; runs nothing."""
  if in_own_process("benchmarks.decode_gpu", CHIPS.value):
    return
  print("no GPU: compiled ahead of time, not run")
  for mode, block, scheme in (
    ("ar", None, "none"),
    ("ar", None, "int8"),
    ("linear_spec", None, "none"),
    ("quadratic_spec", 8, "none"),
    ("quadratic_spec", 16, "none"),
  ):
    program = make(model, mode, block=block, scheme=scheme)
    c = compiled(CHIPS.value[0], program)
    weights = "" if scheme == "none" else f", {scheme}"
    print(f"{CHIPS.value[0]}: {mode}{weights}, C = {block or 'default'}: temporary"
          f" {c.temp / 2**20:.1f} MiB, per pass {len(c.body)} launch(es)",
          flush=True)  # fmt: skip


def main(argv):
  """Runs, or compiles where there is no GPU."""
  del argv
  model, toy = preset(_SIZE.value), _SIZE.value == "tiny"
  room = {"context": 32, "capacity": 256, "new": 32} if toy else {}
  make = functools.partial(Program, **room)
  gpu = jax.default_backend() == "gpu"
  only = _COMPILE_ONLY.value
  if only or (only is None and not gpu and not toy):
    compile_only(model, make)
    return
  floor = measure.floor(toy)
  single(model, floor, make)
  batches(model, floor, make, (1, 2) if toy else BATCHES)


if __name__ == "__main__":
  app.run(main)
