"""Breaks the sources one line at a time: do the tests notice?

    python -m benchmarks.mutations --part=kernels|decode|train|engine|evaluate [--only=WORD]

Each mutation of `benchmarks.mutants` is made in a copy of the project, where
the tests that should notice it then run. One that passes them has survived,
and the exit status is 1. Takes some minutes a part.
"""

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.mutants import Mutation

ROOT = Path(__file__).parent.parent
PARTS = ("kernels", "decode", "train", "engine", "evaluate")


def mutations(part: str) -> tuple[Mutation, ...]:
  """Those of a part."""
  return importlib.import_module(f"benchmarks.mutants.{part}").MUTATIONS


def run(root: Path, tests: Sequence[str], limit: float) -> tuple[bool, str]:
  """Whether the tests pass in a copy, and what they say where not.

  Args:
    root: the copy.
    tests: arguments of pytest.
    limit: seconds after which they are taken to hang.
  """
  command = [
    sys.executable, "-m", "pytest", "-x", "-p", "no:xdist", "-m", "not gpu",
    *tests,
  ]  # fmt: skip
  environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
  try:
    done = subprocess.run(
      command, cwd=root, env=environment, capture_output=True, text=True,
      timeout=limit,
    )  # fmt: skip
  except subprocess.TimeoutExpired:
    return False, "hangs"
  if done.returncode not in (0, 1, 2):  # 2: a module that does not import.
    raise RuntimeError(f"{tests}: {done.stdout}{done.stderr}")
  errors = [x for x in done.stdout.splitlines() if x.startswith("E  ")]
  return done.returncode == 0, " ".join(" ".join(errors[:4]).split())[:90]


def outdated(part: str) -> list[Mutation]:
  """Mutations whose lines are no longer in their file, or there twice."""
  read = lambda m: (ROOT / m.file).read_text()
  return [m for m in mutations(part) if read(m).count(m.old) != 1]


def copy_project(to: Path) -> None:
  """What the tests import and read, with what was compiled before."""
  ignore = shutil.ignore_patterns(
    "__pycache__", ".venv*", ".git", ".cache", ".hypothesis", ".ruff_cache"
  )
  shutil.copytree(ROOT, to, ignore=ignore, dirs_exist_ok=True)


def main(part: str, only: str = "") -> int:
  """Prints a line per mutation; 1 if any survives."""
  if stale := outdated(part):
    raise ValueError(f"not found once in the sources: {stale}")
  chosen = [m for m in mutations(part) if only in m.what]
  survivors = 0
  with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    copy_project(root)
    limits = {}
    for tests in dict.fromkeys(m.tests for m in chosen):
      start = time.monotonic()
      passed, why = run(root, tests, 900)
      limits[tests] = 60 + 10 * (time.monotonic() - start)
      if not passed:
        print(f"{' '.join(tests)}: fails with nothing broken: {why}")
        return 1
    for mutation in chosen:
      path = root / mutation.file
      source = path.read_text()
      path.write_text(source.replace(mutation.old, mutation.new))
      passed, why = run(root, mutation.tests, limits[mutation.tests])
      if why == "hangs":  # Or the machine was busy: once more.
        passed, why = run(root, mutation.tests, limits[mutation.tests])
      path.write_text(source)
      survivors += passed
      verdict = "SURVIVES" if passed else f"caught: {why}"
      print(f"{mutation.what:52} {verdict}", flush=True)
  print(f"{len(chosen) - survivors} of {len(chosen)} mutations caught")
  return int(survivors > 0)


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--part", choices=PARTS, required=True)
  parser.add_argument("--only", default="", help="a word of their names")
  given = parser.parse_args()
  sys.exit(main(given.part, given.only))
