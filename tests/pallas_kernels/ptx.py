"""What generated code says of a kernel: bulk stores and registers.

A bulk store to global memory writes one run of bytes and is cut only at the
end of its array. It stays within its row where every address it can have is a
multiple of its size: a row then holds whole stores, or starts inside of one.
"""

import math
import re

_STORE = re.compile(
  r"cp\.async\.bulk\.global\.shared::\w+\S* \[(%\w+)\], \[%\w+\], ([%\w]+);"
)
_LINE = re.compile(
  r"^\s*(?:@!?%p\d+ )?([a-z][\w.:]*)\s+(%\w+)(?:\|%\w+)?, (.*);"
)
_SAME = (
  "mov",
  "cvt",
  "cvta",
  "neg",
  "shfl",
  "min",
  "max",
  "add",
  "sub",
  "selp",
)


def overruns(text: str) -> list[str]:
  """The bulk stores to global memory that can leave their row.

  Args:
    text: the PTX of a kernel.
  """
  defined = _definitions(text)
  divisors = _divisors(defined)
  found = []
  for address, size in _STORE.findall(text):
    most = _most(size, defined)
    if most is None or divisors.get(address, 1) % most:
      found.append(
        f"a store of {most} bytes to multiples of {divisors.get(address, 1)}"
      )
  return found


def stores(text: str) -> int:
  """How many bulk stores of one run of bytes there are."""
  return len(_STORE.findall(text))


def _definitions(text: str) -> dict[str, list[tuple[str, list[str]]]]:
  """Register -> (operation, operands) of each instruction that writes it."""
  defined: dict[str, list[tuple[str, list[str]]]] = {}
  for line in text.splitlines():
    if found := _LINE.match(line):
      name, to, operands = found.groups()
      values = [x.strip() for x in operands.split(",")]
      defined.setdefault(to, []).append((name, values))
  return defined


def _divisors(defined) -> dict[str, int]:
  """What divides a register whatever runs; 0: it is 0, or a whole array.

  Starts from the best and takes back, so loops need no special care.
  """
  value = dict.fromkeys(defined, 0)
  changed = True
  while changed:
    changed = False
    for register, ways in defined.items():
      new = math.gcd(*(_divisor(*way, value) for way in ways))
      changed |= new != value[register]
      value[register] = new
  return value


def _divisor(name: str, operands: list[str], value: dict[str, int]) -> int:
  def of(x: str) -> int:
    number = re.fullmatch(r"-?\d+", x)
    return abs(int(x)) if number else value.get(x, 1)

  kind = name.split(".")[0]
  a, *more = operands
  if name.startswith("ld.param") and name.endswith("64"):
    return 0  # An array, aligned to 256 bytes.
  if kind in ("mul", "mad"):
    return math.gcd(of(a) * of(more[0]), *map(of, more[1:]))
  if kind == "shl":
    return of(a) << int(more[0]) if more[0].isdigit() else of(a)
  if kind == "and":
    powers = _power(of(a)), _power(of(more[0]))
    return max(powers) if all(powers) else 0
  if kind == "or":
    return math.gcd(_power(of(a)), _power(of(more[0])))
  if kind not in _SAME:
    return 1
  count = 1 if kind == "shfl" else 2
  return math.gcd(*map(of, operands[:count]))


def _power(x: int) -> int:
  """The power of two in a number."""
  return x & -x


def _most(size: str, defined) -> int | None:
  """The largest value of a register that a minimum bounds; None: unknown."""
  if size.isdigit():
    return int(size)
  ((name, operands),) = defined[size]
  kind = name.split(".")[0]
  if kind == "min" and operands[1].isdigit():
    return int(operands[1])
  return _most(operands[0], defined) if kind in ("mov", "cvt") else None
