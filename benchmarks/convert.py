"""Memory and time of converting a synthetic checkpoint (Linux).

    python benchmarks/convert.py [3b|8b|14b|tiny] [FOLDER]

Writes random bfloat16 weights of that size to FOLDER (default: a temporary
one; three and a half times the checkpoint must fit), converts them to Orbax, to
Orbax in int8, and back, and verifies what should be the same. Every step is a
process of its own, watched from outside:
`private` is its largest RssAnon, `resident` its VmHWM, which also counts pages
of mapped files. The bound is 1 GiB plus twice the largest tensor.
"""

import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import orbax.checkpoint

from checkpoints_convert.hf_folder import SINGLE, write_files, write_json
from checkpoints_convert.lazy import Lazy
from nemodiff_jax.io.checkpoint import tensor_table
from nemodiff_jax.io.hf_config import to_hf
from nemodiff_jax.nn.config import preset

BF16 = np.dtype(ml_dtypes.bfloat16)
MIB = 2**20


def write_synthetic(folder: Path, size: str) -> list[int]:
  """Writes a released-layout folder; returns the bytes of its tensors."""
  config, rng = preset(size), np.random.default_rng(0)

  def drawn(shape: tuple[int, ...]) -> Lazy:
    def read() -> np.ndarray:  # Any sign, 0.0078 to 2: finite, not regular.
      bits = rng.integers(0, 2**16, shape, np.uint16)
      return ((bits & 0x83FF) | 0x3C00).view(BF16)

    return Lazy(shape, BF16, read)

  folder.mkdir()
  write_json(folder / "config.json", to_hf(config))
  tensors = {n: drawn(t.shape) for n, t in tensor_table(config).items()}
  write_files(folder, {SINGLE: tensors})
  return [t.nbytes for t in tensors.values()]


def watched(*command: str) -> tuple[float, int, int]:
  """Seconds, largest private and largest resident bytes of a command."""
  start, private, resident = time.time(), 0, 0
  process = subprocess.Popen(
    [sys.executable, "-m", *command], stdout=sys.stderr
  )
  while process.poll() is None:
    try:
      lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
      break
    held = {k: v for k, v in (x.split(":", 1) for x in lines if "kB" in x)}
    private = max(private, int(held.get("RssAnon", "0 kB").split()[0]))
    resident = max(resident, int(held.get("VmHWM", "0 kB").split()[0]))
    time.sleep(0.02)
  if process.wait():
    raise SystemExit(f"{command} failed")
  return time.time() - start, private * 1024, resident * 1024


def main() -> None:
  size = sys.argv[1] if len(sys.argv) > 1 else "3b"
  with tempfile.TemporaryDirectory(
    dir=sys.argv[2] if len(sys.argv) > 2 else None
  ) as root:
    hf, orbax_dir, back = (f"{root}/{n}" for n in ("hf", "orbax", "back"))
    sizes = write_synthetic(Path(hf), size)
    total, largest = sum(sizes), max(sizes)
    bound = 2**30 + 2 * largest
    print(
      f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores"
      f" {platform.machine()}, Python {platform.python_version()},"
      f" orbax-checkpoint {orbax.checkpoint.__version__}; {size}: {len(sizes)}"
      f" tensors, {total / 1e9:.2f} GB, largest {largest / MIB:.0f} MiB, bound"
      f" {bound / MIB:.0f} MiB\n"
    )
    print("| step | s | MB/s | private MiB | resident MiB | of the bound |")
    print("|---|---|---|---|---|---|")
    pair = lambda a, b: (f"--source={a}", f"--target={b}")
    for name, command in {
      "hf_to_orbax": pair(hf, orbax_dir),
      "hf_to_orbax, int8": (*pair(hf, f"{root}/int8"), "--quantize=int8"),
      "orbax_to_hf": pair(orbax_dir, back),
      "verify, Orbax": (*pair(hf, orbax_dir), "--nologits"),
      "verify, back": (*pair(hf, back), "--nologits"),
    }.items():
      module = f"checkpoints_convert.{name.split(',')[0]}"
      seconds, private, resident = watched(module, *command)
      print(
        f"| {name} | {seconds:.0f} | {total / seconds / 1e6:.0f}"
        f" | {private / MIB:.0f} | {resident / MIB:.0f}"
        f" | {private / bound:.2f} |",
        flush=True,
      )


if __name__ == "__main__":
  main()
