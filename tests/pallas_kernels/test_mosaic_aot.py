"""The Mosaic kernels compiled for GPUs that are not there."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pallas_kernels import aot, chips
from pallas_kernels.range_attention import config, mosaic
from tests.pallas_kernels import ptx, sass

reason = aot.unavailable() or sass.unavailable()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))
CHIPS = {"h200": config.HOPPER, "b200": config.BLACKWELL}
TARGETS = {"h200": "sm_90a", "b200": "sm_100a", "b300": "sm_103a"}
SPILLS = {"h200": 0, "b200": 128, "b300": 128}  # Bytes.

# The 8B model: one token; a block; the blocks of quadratic; a prompt.
FAST = ["1,1,4096,32,8,128,paged"]
SLOW = [
  *(
    f"1,{queries},{keys},32,8,128{pages}"
    for queries in (1, 32, 72, 272, 512)
    for keys in (4096, 32768)
    for pages in ("", ",paged")
  ),
  "8,32,32768,32,8,128,paged",
  "1,1,4096,24,8,128,paged",  # Three heads per key head: no tile is full.
  "128,1,4096,32,8,128,paged",
  "1,32,4096,16,2,64,paged",
  "2,5,40,4,4,64",  # Fewer keys than a tile.
]


def hold(chip: str, cases: list[str], folder: Path) -> None:
  """Compiles in another process, and holds the code to its bounds."""
  module = "tests.pallas_kernels.compile_mosaic"
  done = subprocess.run(
    [sys.executable, "-m", module, chip, folder, *cases],
    cwd=Path(__file__).parent.parent.parent,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
  lines = re.findall(r"^DONE .*", done.stdout, re.M)
  assert len(lines) == len(cases)
  print(*lines, sep="\n")
  for line in lines:
    found = dict(re.findall(r"(\w+)=([\d.]+)", line))
    # Per layer: queries, attention, merge. Per pass: the plan.
    assert found["layer"] == "3" and found["copies"] == "0", line
    assert int(found["once"]) <= 10, line
  # Calls that differ only in the grid share a kernel, compiled once.
  kernels = sorted(folder.glob("*.ptx"))
  assert len(kernels) >= 2  # Attention and merge.
  for kernel in kernels:
    text = kernel.read_text()
    # Of the log-sum-exp: all else takes a tensor map.
    assert ptx.stores(text) == ("merge" not in kernel.name)
    assert not ptx.overruns(text)
    said = kernel.with_suffix(".ptxas").read_text()
    spills = [int(x) for x in re.findall(r"(\d+) bytes spill", said)]
    assert len(spills) == 2 and max(spills) <= SPILLS[chip]
    said = kernel.with_suffix(".resources.txt").read_text()
    (shared,) = map(int, re.findall(r"smem_scratch_bytes=(\d+)", said))
    assert shared <= chips.CHIPS[chip].shared - 1024
    registers = "not read: nvdisasm is too old"
    if sass.reads(TARGETS[chip]):
      registers = sass.branches(kernel, TARGETS[chip])
      own = CHIPS["h200" if chip == "h200" else "b200"]
      if "merge" not in kernel.name:
        assert set(registers) == {own.compute_registers, own.load_registers}
      assert all(used <= most for most, used in registers.items())
    print(f"{kernel.stem}: {spills=} {shared=} {registers=}")


@pytest.mark.parametrize("chip", CHIPS)
def test_mosaic_aot_fits_and_spills_nothing(chip, tmp_path):
  hold(chip, FAST, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
def test_mosaic_aot_of_every_mode_fits_and_spills_nothing(chip, tmp_path):
  hold(chip, SLOW, tmp_path)


@pytest.mark.slow
def test_mosaic_aot_for_a_b300(tmp_path):
  hold("b300", FAST, tmp_path)


@pytest.mark.slow
def test_mosaic_aot_of_weights_through_shared_memory(tmp_path):
  """The path that the interpreter takes compiles for the device as well."""
  hold("h200", [case + ",smem" for case in FAST], tmp_path)


@pytest.mark.parametrize("chip", CHIPS)
def test_the_registers_of_a_block_are_there(chip):
  """A warpgroup that asks for more than is left waits for ever."""
  own = CHIPS[chip]
  threads = 128 * mosaic.WARPGROUPS, 128
  asked = own.compute_registers, own.load_registers
  assert np.dot(threads, asked) <= 65536
  assert not any(count % 8 for count in asked) and max(asked) <= 255


STORE = """
	ld.param::entry.b64 	%rd1, [kernel_param_2];
	mov.u32 	%r1, %ctaid.y;
	mov.u32 	%r2, %tid.x;
	shr.u32 	%r3, %r2, 7;
	mul.wide.u32 	%rd2, %r1, {head};
	mul.wide.s32 	%rd3, %r3, {row};
	add.s64 	%rd4, %rd3, %rd2;
	shl.b64 	%rd5, %rd4, 2;
	add.s64 	%rd6, %rd5, %rd1;
	min.u64 	%rd8, %rd7, 256;
	cvt.u32.u64 	%r4, %rd8;
	@%p1 cp.async.bulk.global.shared::cta.bulk_group [%rd6], [%rd9], %r4;
"""


@pytest.mark.parametrize(
  ("head", "row", "count"),
  [(256, 64, 0), (128, 128, 0), (256, 8, 1), (96, 64, 1), (256, 56, 1)],
)
def test_a_bulk_store_that_can_leave_its_row_is_found(head, row, count):
  """64 floats of 4 bytes each, into rows of so many floats."""
  assert len(ptx.overruns(STORE.format(head=head, row=row))) == count
