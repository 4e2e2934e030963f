"""Registers of the branches of a kernel, in the code that the chip runs."""

import importlib.util
import re
import subprocess
from pathlib import Path

# Packages, and where a tool is in them: the first that is there. Triton's
# nvdisasm is of CUDA 12.8.
_TOOLS = {
  "ptxas": (("nvidia", "cu13/bin/ptxas"),),
  "nvdisasm": (
    ("nvidia", "cu13/bin/nvdisasm"),
    ("triton", "backends/nvidia/bin/nvdisasm"),
  ),
}


def unavailable() -> str | None:
  """Why no code can be disassembled here; None: it can."""
  missing = [name for name in _TOOLS if _tool(name) is None]
  return f"needs {' and '.join(missing)} (the extra 'aot')" if missing else None


def reads(target: str) -> bool:
  """Whether code for a target can be disassembled: sm_103a not by CUDA 12.8."""
  return target != "sm_103a" or "triton" not in _tool("nvdisasm").parts


def branches(ptx: Path, target: str) -> dict[int, int]:
  """Registers that a branch may use -> the highest that it does use, plus 1.

  A branch begins where it asks for its registers, and holds whatever can be
  reached from there.

  Args:
    ptx: a kernel.
    target: such as 'sm_90a'.
  """
  cubin = ptx.with_suffix(".cubin")
  subprocess.run(
    [_tool("ptxas"), f"-arch={target}", ptx, "-o", cubin],
    check=True,
    capture_output=True,
  )
  done = subprocess.run(
    [_tool("nvdisasm"), "-c", cubin], check=True, capture_output=True, text=True
  )
  return _branches(done.stdout)


def _branches(text: str) -> dict[int, int]:
  lines = [
    x for x in text.splitlines() if re.search(r"^\.L_|/\*[0-9a-f]{4,}\*/", x)
  ]
  labels = {
    x.strip().rstrip(":"): i for i, x in enumerate(lines) if x[0] == "."
  }
  found = {}
  for i, line in enumerate(lines):
    if "USETMAXREG" in line:
      (allowed,) = re.findall(r"0x([0-9a-f]+) ;", line)
      reached = _reached(i, lines, labels)
      used = (re.findall(r"\bR(\d+)", lines[j]) for j in reached)
      found[int(allowed, 16)] = 1 + max(int(x) for xs in used for x in xs)
  return found


def _reached(start: int, lines: list[str], labels: dict[str, int]) -> set[int]:
  seen, left = set(), [start]
  while left:
    i = left.pop()
    if i in seen or i >= len(lines):
      continue
    seen.add(i)
    if jump := re.search(r"BRA\S* .*?`\((\.L_\w+)\)", lines[i]):
      left.append(labels[jump[1]])
    # One with a predicate, '@P1 BRA' or 'BRA.U UP0', may go on.
    if not re.search(r"\*/\s+(BRA\S* `|EXIT|RET)", lines[i]):
      left.append(i + 1)
  return seen


def _tool(name: str) -> Path | None:
  for package, path in _TOOLS[name]:
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations if spec else None) or ():
      if (Path(place) / path).exists():
        return Path(place) / path
  return None
