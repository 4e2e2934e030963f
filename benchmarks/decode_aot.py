"""The decode loop compiled for GPUs that are not there: copies, memory, graphs.

    make .venv/.dev
    JAX_PLATFORMS=cpu .venv/bin/python -m benchmarks.decode_aot \
      [--chips=h200,b200] [--sizes=3b,8b,14b] [--decoding=ar] [--layers=N] \
      [--schemes=none,int8] [--implementation=xla]

For each mode, size and chip, at batch 1 with a cache of 4096 positions: the
temporary memory of the loop, copies of a cache-shaped buffer, CUDA graphs per
pass, kernels per layer, of these GEMMs, and seconds to compile (without the
autotuning of a real device).
"""

import dataclasses
import itertools
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
from nemodiff_jax.nn.config import ModelConfig, preset
from pallas_kernels import aot

CHIPS = flags.DEFINE_list("chips", ["h200", "b200"], "Chips to compile for.")
_SIZES = flags.DEFINE_list("sizes", ["8b"], "Released sizes.")
_MODES = flags.DEFINE_list("decoding", list(MODES), "Decoding modes.")
_SCHEMES = flags.DEFINE_list("schemes", ["none"], "none, int8.")
_LAYERS = flags.DEFINE_integer("layers", None, "Layers; default: all.")
_IMPLEMENTATION = flags.DEFINE_string(
  "implementation", None, "Default: chosen."
)


_HOLDERS = ("kCommandBuffer", "kConditional", "kSequential", "kWhile")


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
    names: the kernels of a pass, those of a graph one by one.
    sums: products of a row with a kernel that XLA makes by a sum, where it
      may round each to bfloat16 and write them all.
    seconds: to trace, lower and compile.
  """

  temp: int
  aliased: int
  copies: int
  kernels: int
  body: tuple[str, ...]
  names: tuple[str, ...]
  sums: int
  seconds: float

  def per_layer(self, layers: int) -> tuple[float, float, float]:
    """Kernels per layer, of these GEMMs, and kernels outside of the layers.

    Counted from one attention to the next, where most layers agree: what a
    pass runs once may lie between any two. NaN for a single layer.
    """
    at = [i for i, n in enumerate(self.names) if n == "kCustomCall"]
    if layers < 2 or len(at) < layers:
      return math.nan, math.nan, math.nan
    starts = at[:: len(at) // layers]
    between = [self.names[a:b] for a, b in itertools.pairwise(starts)]
    usual = sorted(between, key=len)[(len(between) - 1) // 2]
    gemms = sum("gemm" in name.lower() for name in usual)
    return len(usual), gemms, len(self.names) - len(usual) * layers


def compiled(chip: str, program: Program) -> Compiled:
  """Compiles a loop and reads what came of it."""
  start = time.perf_counter()
  state, log = jax.eval_shape(program.begun)
  with tempfile.TemporaryDirectory() as folder:
    done = aot.compile_for(
      chip,
      driver.run,
      program.decoder,
      program.weights(),
      state,
      log,
      compiler_options={"xla_dump_to": folder},
    )
    seconds = time.perf_counter() - start
    (thunks,) = Path(folder).glob("*.thunk_sequence_after_thunk_passes.txt")
    thunks = thunks.read_text()
  text, memory = done.as_text() or "", done.memory_analysis()
  if memory is None:
    raise SystemExit("the compiler tells nothing of memory")
  return Compiled(
    temp=memory.temp_size_in_bytes,
    aliased=memory.alias_size_in_bytes,
    copies=copies(text, math.prod(state.cache.k[0].shape)),
    kernels=len(re.findall(r'custom_call_target="(?:mosaic|triton)', text)),
    body=loop_body(thunks),
    names=kernels(thunks),
    sums=column_sums(text, program.model),
    seconds=seconds,
  )


def copies(text: str, elements: int) -> int:
  """Copies in optimised HLO of buffers of so many elements."""
  found = re.findall(r"= \(?\w+\[([\d,]*)\][^=\n]*? copy(?:-start)?\(", text)
  sizes = [math.prod(int(x) for x in f.split(",") if x) for f in found]
  return sum(size == elements for size in sizes)


def column_sums(text: str, model: ModelConfig) -> int:
  """Elementwise products in optimised HLO as large as a projection's kernel.

  At one row nothing else of a pass is as large.
  """
  least = model.hidden_size * model.num_kv_heads * model.head_dim
  found = re.findall(r"= \w+\[([\d,]*)\][^=\n]*? multiply\(", text)
  sizes = [math.prod(int(x) for x in f.split(",") if x) for f in found]
  return sum(size >= least for size in sizes)


def loop_body(thunks: str) -> tuple[str, ...]:
  """Kinds of the thunks in the body of the outermost loop, in order."""
  found = _body(thunks)
  return tuple(kind for indent, kind, _ in found if indent == found[0][0])


def kernels(thunks: str) -> tuple[str, ...]:
  """Names of what that body runs, the kernels of its graphs one by one."""
  return tuple(n for _, kind, n in _body(thunks) if kind not in _HOLDERS)


def _body(thunks: str) -> list[tuple[int, str, str]]:
  """(indent, kind, name) of what lies in the body of the outermost loop."""
  lines = iter(thunks.splitlines())
  for line in lines:
    if line.strip() == "body:":
      break
  body = []
  for line in lines:
    found = re.match(r"( *)\d+: (k\w+)\s+\[[^]]*\] *(\S*)", line)
    if found is None:
      continue
    if body and len(found[1]) < body[0][0]:
      break
    body.append((len(found[1]), found[2], found[3]))
  return body


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
  print("| size | layers | weights | mode | temporary MiB | in place MiB |"
        " cache copies | host launches per pass | attention kernels |"
        " kernels per layer | GEMMs per layer | other kernels |"
        " sums for products | seconds |")  # fmt: skip
  print("|---" * 14 + "|")
  for size, scheme, mode in itertools.product(
    _SIZES.value, _SCHEMES.value, _MODES.value
  ):
    model = preset(size)
    layers = _LAYERS.value or model.num_layers
    model = dataclasses.replace(model, num_layers=layers)
    how = _IMPLEMENTATION.value
    c = compiled(chip, Program(model, mode, attention=how, scheme=scheme))
    graph = c.body == ("kCommandBuffer",)
    launches = "1 graph" if graph else str(len(c.body))
    launched, gemms, others = c.per_layer(layers)
    print(f"| {size} | {layers} | {scheme} | {mode} | {c.temp / 2**20:.1f} |"
          f" {c.aliased / 2**20:.0f} | {c.copies} | {launches} |"
          f" {c.kernels} | {launched:.1f} | {gemms:.1f} | {others:.0f} |"
          f" {c.sums} |"
          f" {c.seconds:.0f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
  app.run(main)
