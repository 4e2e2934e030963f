"""What a compiled program sends between devices, read from its HLO."""

import dataclasses
import math
import re

import numpy as np

_KINDS = (
  "all-reduce", "all-gather", "reduce-scatter", "all-to-all",
  "collective-permute",
)  # fmt: skip
_LINE = re.compile(rf"= (.*?) ({'|'.join(_KINDS)})(?:-start)?\((.*)")
_BYTES = {"f64": 8, "f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4}


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation.

  Attributes:
    kind: its name in HLO.
    arrays: (dtype, shape) of what it gives.
    group: ids of the devices of its first group.
    trips: of the loop it is in; 1 outside of loops.
    permutes: whether a collective-permute moves anything.
  """

  kind: str
  arrays: tuple[tuple[str, tuple[int, ...]], ...]
  group: tuple[int, ...]
  trips: int
  permutes: bool = False

  @property
  def wire_bytes(self) -> float:
    """Bytes a device sends, each time, around a ring."""
    size = sum(_BYTES.get(d, 1) * math.prod(s) for d, s in self.arrays)
    n = len(self.group)
    return (
      size
      * {
        "all-gather": (n - 1) / n,
        "all-to-all": (n - 1) / n,
        "all-reduce": 2 * (n - 1) / n,
        "reduce-scatter": n - 1,
        "collective-permute": float(self.permutes),
      }[self.kind]
    )


def collectives(hlo: str) -> list[Collective]:
  """Those of a compiled program (`Compiled.as_text`)."""
  loops = re.findall(
    r'while\(.*?body=%?([\w.\-]+).*?"known_trip_count":\{"n":"(\d+)"', hlo
  )
  trips = {body: int(n) for body, n in loops}
  found, at = [], 1
  for line in hlo.splitlines():
    if head := re.match(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
      at = trips.get(head[1], 1)
    elif match := _LINE.search(line):
      result, kind, rest = match.groups()
      found.append(
        Collective(kind, _arrays(result), _group(rest), at, _moves(rest))
      )
  return found


def crosses(each: Collective, shape: tuple[int, ...], axis: int) -> bool:
  """Whether it sends along an axis of a mesh of this shape."""
  return len(set(np.unravel_index(list(each.group), shape)[axis])) > 1


def _arrays(result: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
  """Of a start, ((operands), results), the results alone."""
  result = re.sub(r"\{[^{}]*\}|/\*.*?\*/", "", result)
  if result.startswith("(("):
    result = result.split("), ", 1)[1]
  return tuple(
    (dtype, tuple(int(n) for n in shape.split(",") if n))
    for dtype, shape in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", result)
  )


def _group(rest: str) -> tuple[int, ...]:
  """The first group, in any of HLO's ways to write it."""
  if match := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", rest):
    axes = re.findall(r"'(\w+)'=(\d+)", match[1])
    ids = np.arange(math.prod(int(n) for _, n in axes))
    ids = ids.reshape([int(n) for _, n in axes])
    over = re.findall(r"'(\w+)'", match[2])
    index = tuple(slice(None) if a in over else 0 for a, _ in axes)
    return tuple(ids[index].ravel().tolist())
  form = r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
  if match := re.search(form, rest):
    shape = [int(n) for n in match[3].split(",")]
    ids = np.arange(math.prod(shape)).reshape(shape)
    if match[4]:
      ids = ids.transpose([int(n) for n in match[4].split(",")])
    return tuple(ids.reshape(int(match[1]), int(match[2]))[0].tolist())
  match = re.search(
    r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)", rest
  )
  return tuple(int(n) for n in match[1].split(",")) if match else (0,)


def _moves(rest: str) -> bool:
  pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", rest)
  each = re.findall(r"\{(\d+),(\d+)\}", pairs[1]) if pairs else []
  return any(a != b for a, b in each)
