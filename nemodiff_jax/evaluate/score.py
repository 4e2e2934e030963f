"""What a reply is worth: exact match, a pattern, a number, tests that pass."""

import dataclasses
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_MARKED = re.compile(r"####\s*(\S+)")
_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.S | re.I)


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What a reply is worth.

  Attributes:
    score: 0 (wrong) to 1 (right).
    found: the answer found in it; None: none was.
  """

  score: float
  found: str | None


Judge = Callable[[str], Verdict]


def exact(answer: str) -> Judge:
  """The whole reply is the answer, but for white space around it."""

  def judge(text: str) -> Verdict:
    found = text.strip()
    return Verdict(float(found == answer.strip()), found)

  return judge


def extracted(answer: str, pattern: re.Pattern) -> Judge:
  """The last match of a pattern (its first group) is the answer."""

  def judge(text: str) -> Verdict:
    found = None
    for match in pattern.finditer(text):
      found = (match.group(1) if pattern.groups else match.group()) or ""
    same = found is not None and found.strip() == answer.strip()
    return Verdict(float(same), found)

  return judge


def matches(pattern: re.Pattern) -> Judge:
  """A pattern is found in the reply."""

  def judge(text: str) -> Verdict:
    match = pattern.search(text)
    return Verdict(float(match is not None), match and match.group())

  return judge


def number(answer: str) -> Judge:
  """The number that the reply ends with: boxed, after ####, or the last one."""
  wanted = to_number(answer)

  def judge(text: str) -> Verdict:
    for marked in (_BOXED, _MARKED):
      if found := marked.findall(text):
        text = found[-1]
        break
    found = NUMBER.findall(text)
    last = found[-1] if found else None
    got = None if last is None else to_number(last)
    return Verdict(float(got is not None and got == wanted), last)

  return judge


def to_number(text: str) -> Decimal | None:
  """A number as people write it: 1,234.50 or $7; None: it is none."""
  try:
    return Decimal(text.strip().replace(",", "").replace("$", ""))
  except InvalidOperation:
    return None


def code_block(text: str) -> str:
  """The last fenced block that defines something, or the text itself."""
  blocks = _FENCE.findall(text)
  defining = [b for b in blocks if "def " in b]
  return (defining or blocks or [text])[-1]
