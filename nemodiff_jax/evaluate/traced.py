"""What traces tell: how often a draft of some confidence is right, and passes.

A draft slot is judged by the verification that follows it: the accepted ones
were right, the first rejected one was wrong. Those behind it were never judged.
"""

import collections
from collections.abc import Iterable, Sequence
from typing import Any

Trace = Sequence[dict[str, Any]]


def judged_drafts(mode: str, trace: Trace) -> list[tuple[int, float, bool]]:
  """(slot, confidence, right) of every draft slot that was judged.

  Slot 0 of a linear_spec block is certain and left out. In quadratic_spec and
  diffusion nothing of the kind is in a trace: empty.
  """
  if mode != "linear_spec":
    return []
  found, draft = [], None
  for entry in trace:
    if entry["phase"] == "draft":
      draft = entry
    elif draft is not None and "accepted" in entry:
      # Tokens accepted: slot 0, the drafts that agree, the one that follows.
      right = entry["accepted"] - 1
      last = min(right + 1, len(draft["confidence"]) - 1)
      found += [
        (slot, draft["confidence"][slot], slot <= right)
        for slot in range(1, last + 1)
      ]
      draft = None
  return found


def passes_per_block(trace: Trace) -> list[int]:
  """Passes of each whole block or cycle, its commit or verification included."""
  found, count = [], 0
  for entry in trace:
    if entry["phase"] == "prompt":
      continue
    count += 1
    if entry["phase"] != "denoise" and entry["phase"] != "draft":
      found.append(count)
      count = 0
  return found


def calibration(
  judged: Iterable[tuple[int, float, bool]], bins: int = 10
) -> list[dict[str, float]]:
  """Bins of confidence: its mean, the share that was right, how many."""
  by_bin = collections.defaultdict(list)
  for _, confidence, right in judged:
    by_bin[min(bins - 1, int(confidence * bins))].append((confidence, right))
  return [
    {
      "confidence": sum(c for c, _ in part) / len(part),
      "right": sum(r for _, r in part) / len(part),
      "count": len(part),
    }
    for _, part in sorted(by_bin.items())
  ]


def acceptance_by_slot(accepted: Iterable[int], block: int) -> list[float]:
  """Share of cycles in which at least so many tokens were accepted, from 1."""
  given = list(accepted)
  return [sum(n >= k for n in given) / len(given) for k in range(1, block + 1)]
