"""Two runs side by side: paired differences, and the settings that differ."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemodiff_jax.errors import UserError
from nemodiff_jax.evaluate.record import (
  Sample,
  differences,
  load_run,
  load_samples,
)
from nemodiff_jax.evaluate.statistics import paired_interval


def compare(a: Path, b: Path) -> str:
  """What to print of two folders.

  Settings are paired by name; where a task has one setting in each run, these
  two are, whatever their names.

  Raises:
    UserError: a folder that holds no run; nothing that both hold.
  """
  differ = differences(load_run(a)["settings"], load_run(b)["settings"])
  lines = [f"A: {a}", f"B: {b}", "Settings that differ (A and B):"]
  lines += [f"  {d}" for d in differ] or ["  none"]
  first, second = _by_pair(load_samples(a)), _by_pair(load_samples(b))
  rows = []
  for task in dict.fromkeys(t for t, _ in first):
    mine = [s for t, s in first if t == task]
    other = [s for t, s in second if t == task]
    pairs = [(s, s) for s in mine if s in other]
    if len(mine) == len(other) == 1:
      pairs = [(mine[0], other[0])]
    rows += [
      difference(task, x, y, first[task, x], second[task, y]) for x, y in pairs
    ]
  rows = [r for r in rows if r is not None]
  if not rows:
    raise UserError(f"{a} and {b} have no question and setting in common.")
  return "\n".join([*lines, *(show(r) for r in rows)])


def difference(
  task: str,
  name_a: str,
  name_b: str,
  a: dict[str, Sample],
  b: dict[str, Sample],
) -> dict[str, Any] | None:
  """B less A over the questions that both answered; None: there are none."""
  common = [i for i in a if i in b]
  if not common:
    return None
  scores = [b[i]["score"] - a[i]["score"] for i in common]
  row: dict[str, Any] = {
    "task": task,
    "settings": (name_a, name_b),
    "questions": len(common),
    "apart": len(a) + len(b) - 2 * len(common),
    "accuracy": float(np.mean(scores)),
    "accuracy_interval": paired_interval(scores),
    "lost": [i for i, d in zip(common, scores, strict=True) if d < 0],
    "won": [i for i, d in zip(common, scores, strict=True) if d > 0],
  }
  both = [i for i in common if a[i].get("nfe") and b[i].get("nfe")]
  if both:
    rate = lambda s: s["num_generated_tokens"] / s["nfe"]
    speed = [rate(b[i]) - rate(a[i]) for i in both]
    row["tokens_per_forward"] = float(np.mean(speed))
    row["tokens_per_forward_interval"] = paired_interval(speed)
    row["same_tokens"] = sum(
      a[i]["token_ids"] == b[i]["token_ids"] for i in both
    )
  return row


def show(row: dict[str, Any]) -> str:
  """A difference in words."""
  a, b = row["settings"]
  low, high = row["accuracy_interval"]
  lines = [
    f"{row['task']}: {b} (B) less {a} (A), {row['questions']} questions in"
    " common" + (f", {row['apart']} in one only" if row["apart"] else ""),
    f"  right: {100 * row['accuracy']:+.1f} points, 95 % {100 * low:+.1f} to"
    f" {100 * high:+.1f}; B won {_some(row['won'])}, lost {_some(row['lost'])}",
  ]
  if "tokens_per_forward" in row:
    low, high = row["tokens_per_forward_interval"]
    lines.append(
      f"  tokens per forward, mean of questions:"
      f" {row['tokens_per_forward']:+.2f}, 95 % {low:+.2f} to {high:+.2f};"
      f" {row['same_tokens']} of {row['questions']} replies the same, token for"
      " token"
    )
  return "\n".join(lines)


def _some(ids: Sequence[str]) -> str:
  if not ids:
    return "none"
  more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
  return f"{len(ids)} ({', '.join(ids[:5])}{more})"


def _by_pair(samples: list[Sample]) -> dict[tuple[str, str], dict[str, Sample]]:
  found: dict[tuple[str, str], dict[str, Sample]] = {}
  for s in samples:
    found.setdefault((s["task"], s["setting"]), {})[s["id"]] = s
  return found
