"""The Mosaic kernels compiled for an H200 and a B200 that are not there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pallas_kernels import aot
from tests.pallas_kernels import ptx

reason = aot.unavailable()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))
SPILLS = {"hopper": 0, "blackwell": 128}  # Bytes; nothing to measure with yet.

# The 8B model: one token; a block; the blocks of quadratic; a prompt.
FAST = ["1,32,4096,32,8,128"]
SLOW = [
  *(
    f"1,{queries},{keys},32,8,128"
    for queries in (1, 32, 72, 272, 512)
    for keys in (4096, 32768)
  ),
  "8,32,32768,32,8,128",
  "1,1,4096,24,8,128",  # Three heads per key head: rows that fill no tile.
  "128,1,4096,32,8,128",
  "1,32,4096,16,2,64",
  "2,5,40,4,4,64",  # Fewer keys than a tile.
]


def compiled(name: str, cases: list[str]) -> str:
  """The output of a process that compiles the cases."""
  done = subprocess.run(
    [sys.executable, "-m", "tests.pallas_kernels.compile_mosaic", name, *cases],
    cwd=Path(__file__).parent.parent.parent,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
  return done.stdout + done.stderr


def hold(name: str, cases: list[str]) -> None:
  text = compiled(name, cases)
  lines = re.findall(r"^DONE .*", text, re.M)
  spills = re.findall(
    r"(\d+) bytes spill stores, (\d+) bytes spill loads", text
  )
  registers = re.findall(r"Used (\d+) registers", text)
  # Calls that differ only in the grid share a kernel, compiled once.
  assert len(lines) == len(cases) and spills
  kernels = text.split("\n.version ")[1:]
  assert len(kernels) == len(spills)
  for kernel in kernels:  # Of the log-sum-exp: outputs take a tensor map.
    assert ptx.stores(kernel) == 1 and not ptx.overruns(kernel)
  print(*lines, f"{spills=} {registers=}", sep="\n")
  for case in spills:
    assert max(map(int, case)) <= SPILLS[name]
  for line in lines:
    kernels, copies = map(
      int, re.findall(r"kernels=(\d+) copies=(\d+)", line)[0]
    )
    # Once per pass: the bounds, three. Per layer: queries, attention, merge (two or three).
    assert kernels <= 8 and copies == 0, line


@pytest.mark.parametrize("name", SPILLS)
def test_mosaic_aot_fits_and_spills_nothing(name):
  hold(name, FAST)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPILLS)
def test_mosaic_aot_of_every_mode_fits_and_spills_nothing(name):
  hold(name, SLOW)


@pytest.mark.slow
def test_mosaic_aot_of_weights_through_shared_memory():
  """The path that the interpreter takes compiles for the device as well."""
  hold("hopper", [case + ",smem" for case in FAST])


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
