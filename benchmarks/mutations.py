"""Breaks the Mosaic kernels one line at a time: does their suite notice?

    JAX_PLATFORMS=cpu python benchmarks/mutations.py

Each mutation is made in a copy of the sources, where a few cases of
tests/pallas_kernels/test_mosaic.py then run. A mutation that passes them all
has survived, and the exit status is 1. Takes some minutes.
"""

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
KERNELS = "pallas_kernels/range_attention"
SUITE = "tests/pallas_kernels/test_mosaic.py"
ONE = "2x1x200x4x1x64"  # One token, ragged, the last tile is partial.
RING = "1x4x600x4x1x128"  # More tiles than the ring has.
MIXED = "2x5x72x3x1x64"  # Empty rows.
BLOCK = "1x32x128x4x1x128"  # Causal, two warpgroups share a tile.


@dataclasses.dataclass(frozen=True)
class Mutation:
  """Replaces `old` by `new` in a file; `case` should then fail."""

  what: str
  file: str
  old: str
  new: str
  case: str
  chip: str = "hopper"


SHIFT = "left = limit - (span.first + i) * keys"
MUTATIONS = (
  Mutation(
    "no wait for K", "mosaic_hopper.py",
    "    plgpu.barrier_wait(ring.k_full.at[slot])\n", "", ONE,
  ),
  Mutation(
    "no wait for V", "mosaic_hopper.py",
    "    plgpu.barrier_wait(ring.v_full.at[slot])\n", "", ONE,
  ),
  Mutation(
    "no wait for the queries", "mosaic_block.py",
    "  plgpu.barrier_wait(loaded)\n", "", ONE,
  ),
  Mutation(
    "K given back before it is used", "mosaic_hopper.py",
    "    plgpu.barrier_wait(ring.k_full.at[slot])\n",
    "    plgpu.barrier_wait(ring.k_full.at[slot])\n"
    "    plgpu.barrier_arrive(ring.k_free.at[slot])\n", RING,
  ),
  Mutation(
    "no wait for a free slot", "mosaic_block.py",
    "    pl.when(i >= stages)(lambda: wait(i))\n", "", RING,
  ),
  Mutation(
    "V not waited for before it is cleaned", "mosaic_block.py",
    "      plgpu.barrier_wait(ring.landed)\n", "", ONE,
  ),
  Mutation(
    "V beyond the last key not cleaned", "mosaic_block.py",
    "      _clear(ring.v.at[slot], span.limit - start)\n", "", ONE,
  ),
  Mutation(
    "k_end one more", "mosaic_hopper.py", SHIFT, SHIFT + " + 1", BLOCK
  ),
  Mutation(
    "k_end one less", "mosaic_hopper.py", SHIFT, SHIFT + " - 1", BLOCK
  ),
  Mutation(
    "partial tile not masked", "mosaic.py",
    "by_tile.min(-1) // block", "by_tile.max(-1) // block", BLOCK,
  ),
  Mutation(
    "last tile of a split left out", "mosaic_block.py",
    "lax.div((split + 1) * end, splits)",
    "lax.div((split + 1) * end - 1, splits)", RING,
  ),
  Mutation(
    "empty rows not told apart", "mosaic_block.py",
    "FLOOR = -1e20", "FLOOR = -1e30", MIXED,
  ),
  Mutation(
    "equal weights in the merge", "mosaic.py",
    "jnp.exp(x - peak) for x", "jnp.exp(x * 0) for x", RING,
  ),
  Mutation(
    "sum not decayed", "mosaic_block.py",
    "total * decay + weights", "total + weights", RING,
  ),
  Mutation(
    "no wait for the scores", "mosaic_blackwell.py",
    "    plgpu.barrier_wait(scored)\n", "", ONE, "blackwell",
  ),
  Mutation(
    "no wait for the output", "mosaic_blackwell.py",
    "    plgpu.barrier_wait(summed)\n", "", RING, "blackwell",
  ),
  Mutation(
    "output not decayed", "mosaic_blackwell.py",
    "new = old * lax.broadcast_in_dim(decay, old.shape, [0])",
    "new = old", RING, "blackwell",
  ),
  Mutation(
    "k_end one more", "mosaic_blackwell.py", SHIFT, SHIFT + " + 1", BLOCK,
    "blackwell",
  ),
)  # fmt: skip


def run(root: Path, chip: str, cases: list[str]) -> tuple[bool, str]:
  """Whether the cases of a chip pass in a copy, and the last line printed."""
  choice = f"without_races and {chip} and ({' or '.join(cases)})"
  command = [
    sys.executable, "-m", "pytest", SUITE, "-x", "-k", choice,
    "-p", "no:cacheprovider", "-p", "no:xdist",
  ]  # fmt: skip
  environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
  try:
    done = subprocess.run(
      command, cwd=root, env=environment, capture_output=True, text=True,
      timeout=900,
    )  # fmt: skip
  except subprocess.TimeoutExpired:
    return False, "hangs"
  if done.returncode not in (0, 1):
    raise RuntimeError(done.stdout + done.stderr)
  errors = [x for x in done.stdout.splitlines() if x.startswith("E  ")]
  return done.returncode == 0, " ".join(" ".join(errors[:4]).split())[:90]


def outdated() -> list[Mutation]:
  """Mutations whose line is no longer in its file, or there twice."""
  read = lambda m: (ROOT / KERNELS / m.file).read_text()
  return [m for m in MUTATIONS if read(m).count(m.old) != 1]


def copy_sources(to: Path) -> None:
  """What the suite imports."""
  for name in ("pallas_kernels", "nemodiff_jax", "tests"):
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / name, to / name, ignore=ignore)
  shutil.copy(ROOT / "pyproject.toml", to)


def main() -> int:
  if stale := outdated():
    raise ValueError(f"not found once in the sources: {stale}")
  survivors = 0
  with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    copy_sources(root)
    for chip in ("hopper", "blackwell"):
      passed, why = run(root, chip, [ONE, RING, MIXED, BLOCK])
      print(f"{chip:10}{'unchanged':40}{'passes' if passed else why}")
      if not passed:
        return 1
    for mutation in MUTATIONS:
      path = root / KERNELS / mutation.file
      source = path.read_text()
      path.write_text(source.replace(mutation.old, mutation.new))
      passed, why = run(root, mutation.chip, [mutation.case])
      path.write_text(source)
      survivors += passed
      verdict = "SURVIVES" if passed else f"caught: {why}"
      print(f"{mutation.chip:10}{mutation.what:40}{verdict}", flush=True)
  print(f"{len(MUTATIONS) - survivors} of {len(MUTATIONS)} mutations caught")
  return int(survivors > 0)


if __name__ == "__main__":
  sys.exit(main())
