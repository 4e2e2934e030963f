"""The decode loop as compiled for GPUs: memory, copies, one CUDA graph."""

import dataclasses
import os
import subprocess
import sys

import jax
import pytest

from benchmarks import decode_aot, roofline
from benchmarks.programs import Program, weight_bytes
from nemodiff_jax.decode import driver
from nemodiff_jax.decode.config import MODES
from nemodiff_jax.nn.config import preset
from pallas_kernels import aot
from pallas_kernels.chips import CHIPS

reason = aot.unavailable()
needs_compiler = pytest.mark.skipif(reason is not None, reason=str(reason))


def gate(
  chip: str,
  sizes: list[str],
  modes: list[str],
  layers: int,
  scheme: str = "none",
) -> None:
  """What must hold at batch 1 with a cache of 4096 positions.

  In a process of its own: Mosaic compiles for one kind of chip in each.
  """
  done = subprocess.run(
    [
      sys.executable, "-m", "benchmarks.decode_aot", f"--chips={chip}",
      f"--sizes={','.join(sizes)}", f"--decoding={','.join(modes)}",
      f"--layers={layers}",
      f"--schemes={scheme}",
    ],
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  print(done.stdout)
  names, _, *lines = done.stdout.splitlines()[1:]
  names = names.strip("| ").split(" | ")
  rows = [
    dict(zip(names, line.strip("| ").split(" | "), strict=True))
    for line in lines
  ]
  assert [row["mode"] for row in rows] == modes * len(sizes)
  for row in rows:
    assert row["host launches per pass"] == "1 graph"
    assert row["cache copies"] == "0"
    # Attention, and what merges the parts of a cut tile.
    assert int(row["attention kernels"]) == 2 * layers
    most = {"quadratic_spec": 256, "ar": 4}.get(row["mode"], 64)
    assert float(row["temporary MiB"]) < most
    caches = layers * 2 * 4096 * 8 * 128 * 2 / 2**20
    assert int(row["in place MiB"]) >= caches
    if layers > 1:  # What the predictions count on.
      per_layer, others = roofline.KERNELS[row["mode"]]
      assert float(row["kernels per layer"]) <= per_layer
      assert float(row["other kernels"]) <= others
    if row["mode"] == "ar":
      assert row["sums for products"] == "0"
      # q, k and v are one, so are gate and up of the 3B.
      assert float(row["GEMMs per layer"]) <= 5


@needs_compiler
@pytest.mark.parametrize(
  ("chip", "mode"),
  [
    ("h200", "linear_spec"),
    pytest.param("b200", "quadratic_spec", marks=pytest.mark.slow),
  ],
)
def test_aot_mosaic_loop_is_one_graph_without_copies(chip, mode):
  gate(chip, ["8b"], [mode], layers=1)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
  ("sizes", "scheme"), [(["3b", "14b"], "none"), (["8b"], "int8")]
)
def test_aot_one_row_takes_gemms(sizes, scheme):
  """No product is written before its sum: 16 MiB, 32 in int8, for the 8B."""
  gate("h200", sizes, ["ar"], layers=3, scheme=scheme)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["none", "int8"])
@pytest.mark.parametrize("size", ["3b", "8b", "14b"])
@pytest.mark.parametrize("chip", ["h200", "b200"])
def test_aot_mosaic_every_loop_of_every_size(chip, size, scheme):
  modes = list(MODES) if scheme == "none" else ["ar"]
  gate(chip, [size], modes, preset(size).num_layers, scheme)


@needs_compiler
@pytest.mark.slow
def test_aot_gate_sees_a_state_that_is_not_donated():
  """The gate can fail: without donation every cache is copied."""
  model = dataclasses.replace(preset("8b"), num_layers=1)
  program = Program(model, "ar", attention="xla")
  begun = jax.eval_shape(program.begun)
  kept = jax.jit(driver.run.__wrapped__, static_argnames="decoder")
  done = aot.compile_for(
    "h200", kept, program.decoder, program.weights(), *begun
  )
  elements = 4096 * model.num_kv_heads * model.head_dim
  assert decode_aot.copies(done.as_text(), elements) >= 2


def test_copies_count_buffers_of_the_named_size():
  text = """
    %a = bf16[1,64,8,128]{3,2,1,0} copy(%x)
    %b = (bf16[65536]{0}, bf16[65536]{0}, u32[]) copy-start(%x)
    %c = f32[8,128]{1,0} copy(%x)
    %d = bf16[1,64,8,128]{3,2,1,0} add(%x, %copy.1)
  """
  assert decode_aot.copies(text, 65536) == 2
  assert decode_aot.copies(text, 1024) == 1


def test_column_sums_are_products_as_large_as_a_kernel():
  text = """
    %a = bf16[4096,1024]{1,0} multiply(%x, %y)
    ROOT %b = f32[1,4096,1024]{2,1,0} multiply(%x, %y)
    %c = bf16[272,14336]{1,0} multiply(%x, %y)
    %d = bf16[4096,1024]{1,0} add(%x, %multiply.1)
  """
  assert decode_aot.column_sums(text, preset("8b")) == 2


def test_loop_body_lists_what_the_host_launches():
  one = """001: kWhile [source | sink]
condition:
    002: kCustomKernel [source | sink] less
  body:
    000: kCommandBuffer [source | sink]
        003: kCopy [source | sink] kCopy
        004: kCustomCall [source | sink] attention
003: kCopy [source | sink]
"""
  assert decode_aot.loop_body(one) == ("kCommandBuffer",)
  assert decode_aot.kernels(one) == ("kCopy", "attention")
  two = one.replace(
    "003: kCopy [source | sink]\n", "    005: kWhile [source | sink]\n"
  )
  assert decode_aot.loop_body(two) == ("kCommandBuffer", "kWhile")


def test_what_a_pass_runs_once_is_no_kernel_of_a_layer():
  layer = ("kCustomCall", "merge", "gemm_1", "norm")
  names = ("embed", *layer, *layer[:2], "once", *layer[2:], *layer, "argmax")
  made = decode_aot.Compiled(0, 0, 0, 0, (), names, 0, 0)
  assert made.per_layer(3) == (4, 1, 3)


def test_roofline_counts_the_weights_and_the_keys():
  """By hand: 8.49 G parameters less the embedding, 34 layers of keys."""
  read = weight_bytes(Program(preset("8b"), "ar").weights())
  assert read == pytest.approx(2 * (8.49e9 - 131072 * 4096), rel=2e-3)
  keys = 34 * 2 * 8 * 128 * 2 * 4096
  want = (read + keys) / CHIPS["h200"].bandwidth
  got = roofline.pass_seconds(CHIPS["h200"], preset("8b"), 1)
  assert got == pytest.approx(want)
  wide = roofline.pass_seconds(CHIPS["h200"], preset("8b"), 1000)
  assert wide > 1000 * read / CHIPS["h200"].flops  # Bound by operations.


def test_roofline_adds_fixed_costs():
  """By hand, of the 8B's ar pass; more rows and more kernels cost more."""
  chip, model = CHIPS["h200"], preset("8b")
  costs = roofline.COSTS
  p = roofline.predict(chip, model, "ar", 1)
  read = weight_bytes(Program(model, "ar").weights())
  rate = 4.8e12 * costs.copy
  assert p.products == pytest.approx(read / (rate * costs.few_rows))
  keys = 2 * 8 * 128 * 2 * 4096
  assert p.attention == pytest.approx(34 * (costs.start + keys / rate))
  per_layer, others = roofline.KERNELS["ar"]
  assert p.launches == pytest.approx((34 * per_layer + others) * costs.launch)
  wide = roofline.predict(chip, model, "quadratic_spec", 272)
  assert wide.products == pytest.approx(  # 272 rows take five tiles of 64.
    320 * read / (989e12 * costs.rate)
  )
  floor = roofline.copy_floor(chip, model)
  assert floor == pytest.approx((read + 34 * keys) / rate)
  assert floor < p.seconds < wide.seconds
  fewer = roofline.predict(
    chip, model, "ar", 1, kernels=(per_layer - 1, others)
  )
  assert p.seconds - fewer.seconds == pytest.approx(34 * costs.launch)
  halved = roofline.predict(chip, model, "ar", 1, weight_item=1)
  assert halved.products == pytest.approx(p.products / 2)
