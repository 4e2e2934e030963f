"""The decode loop compiled for GPUs that are not there: copies, memory, graphs.

    make .venv/.dev
    JAX_PLATFORMS=cpu .venv/bin/python -m benchmarks.decode_aot \
      [--chips=h200,b200] [--sizes=3b,8b,14b] [--layers=N] [--implementation=xla]

For each mode, size and chip, at batch 1 with a cache of 4096 positions: the
temporary memory of the loop, copies of a cache-shaped buffer, CUDA graphs per
pass, and seconds to compile (without the autotuning of a real device).
"""

import dataclasses
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from absl import app, flags

from benchmarks.programs import Program
from nemodiff_jax.decode import driver
from nemodiff_jax.decode.config import MODES
from nemodiff_jax.nn.config import preset
from pallas_kernels import aot

CHIPS = flags.DEFINE_list("chips", ["h200", "b200"], "Chips to compile for.")
_SIZES = flags.DEFINE_list("sizes", ["8b"], "Released sizes.")
_MODES = flags.DEFINE_list("modes", list(MODES), "Decoding modes.")
_LAYERS = flags.DEFINE_integer("layers", None, "Layers; default: all.")
_IMPLEMENTATION = flags.DEFINE_string(
  "implementation", None, "Default: chosen."
)


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What the compiler made of a loop.

  Attributes:
    temp: bytes of temporary memory.
    aliased: bytes of the state that are updated in place.
    copies: copies of a buffer shaped like a layer's cache.
    kernels: attention kernels by Mosaic or Triton in the program.
    body: kinds of what the host launches per pass; one CUDA graph is
      ('kCommandBuffer',).
    seconds: to trace, lower and compile.
  """

  temp: int
  aliased: int
  copies: int
  kernels: int
  body: tuple[str, ...]
  seconds: float


def compiled(chip: str, program: Program) -> Compiled:
  """Compiles a loop and reads what came of it."""
  start = time.perf_counter()
  state = jax.eval_shape(program.state)
  with tempfile.TemporaryDirectory() as folder:
    done = aot.compile_for(
      chip,
      driver.run,
      program.decoder,
      program.weights(),
      state,
      compiler_options={"xla_dump_to": folder},
    )
    seconds = time.perf_counter() - start
    (thunks,) = Path(folder).glob("*.thunk_sequence_after_thunk_passes.txt")
    body = loop_body(thunks.read_text())
  text, memory = done.as_text() or "", done.memory_analysis()
  if memory is None:
    raise SystemExit("the compiler tells nothing of memory")
  return Compiled(
    temp=memory.temp_size_in_bytes,
    aliased=memory.alias_size_in_bytes,
    copies=copies(text, math.prod(state.cache.k[0].shape)),
    kernels=len(re.findall(r'custom_call_target="(?:mosaic|triton)', text)),
    body=body,
    seconds=seconds,
  )


def copies(text: str, elements: int) -> int:
  """Copies in optimised HLO of buffers of so many elements."""
  found = re.findall(r"= \(?\w+\[([\d,]*)\][^=\n]*? copy(?:-start)?\(", text)
  sizes = [math.prod(int(x) for x in f.split(",") if x) for f in found]
  return sum(size == elements for size in sizes)


def loop_body(thunks: str) -> tuple[str, ...]:
  """Kinds of the thunks in the body of the outermost loop, in order."""
  lines = iter(thunks.splitlines())
  for line in lines:
    if line.strip() == "body:":
      break
  kinds, depth = [], None
  for line in lines:
    found = re.match(r"( *)\d+: (k\w+)", line)
    if found is None:
      continue
    depth = len(found[1]) if depth is None else depth
    if len(found[1]) < depth:
      break
    if len(found[1]) == depth:
      kinds.append(found[2])
  return tuple(kinds)


def in_own_process(module: str, chips: list[str]) -> bool:
  """Runs a command again for each chip alone; False where it is just one.

  Mosaic's compiler keeps the first chip it met in a process.
  """
  if len(chips) < 2:
    return False
  given = [a for a in sys.argv[1:] if not a.startswith("--chips")]
  for chip in chips:
    command = [sys.executable, "-m", module, *given, f"--chips={chip}"]
    subprocess.run(command, check=True)
  return True


def main(argv):
  """Prints the table."""
  del argv
  if in_own_process("benchmarks.decode_aot", CHIPS.value):
    return
  (chip,) = CHIPS.value
  print(f"{chip}, jax {jax.__version__}, batch 1, cache 4096, bfloat16")
  print("| size | layers | mode | temporary MiB | in place MiB | cache copies |"
        " host launches per pass | attention kernels | seconds |")  # fmt: skip
  print("|---|---|---|---|---|---|---|---|---|")
  for size in _SIZES.value:
    model = preset(size)
    layers = _LAYERS.value or model.num_layers
    model = dataclasses.replace(model, num_layers=layers)
    for mode in _MODES.value:
      c = compiled(chip, Program(model, mode, attention=_IMPLEMENTATION.value))
      graph = c.body == ("kCommandBuffer",)
      launches = "1 graph" if graph else str(len(c.body))
      print(f"| {size} | {layers} | {mode} | {c.temp / 2**20:.1f} |"
            f" {c.aliased / 2**20:.0f} | {c.copies} | {launches} |"
            f" {c.kernels} | {c.seconds:.0f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
  app.run(main)
