"""From samples to rows of results: a row per task and setting."""

import collections
import statistics
from collections.abc import Sequence
from typing import Any

from nemodiff_jax.evaluate.record import Sample
from nemodiff_jax.evaluate.statistics import ratio_interval, share_interval

AR = "ar"


def summarise(samples: Sequence[Sample]) -> list[dict[str, Any]]:
  """Rows in the order in which tasks and settings first appear.

  A row holds: task, setting, questions, accuracy, accuracy_interval,
  tokens_per_forward, tokens_per_forward_interval, num_generated_tokens, nfe,
  accepted_per_cycle, same_as_ar (replies that are ar's, token for token, of
  those that ar gave too), groups.
  """
  many: dict[tuple[str, str], list[Sample]] = collections.defaultdict(list)
  for sample in samples:
    many[sample["task"], sample["setting"]].append(sample)
  reference = {
    (s["task"], s["id"]): s.get("token_ids")
    for s in samples
    if s["setting"] == AR and s.get("token_ids") is not None
  }
  return [_row(*key, part, reference) for key, part in many.items()]


def _row(task: str, setting: str, part: list[Sample], reference) -> dict:
  scores = [s["score"] for s in part]
  row: dict[str, Any] = {
    "task": task,
    "setting": setting,
    "questions": len(part),
    "accuracy": statistics.fmean(scores),
  }
  row["accuracy_interval"] = share_interval(row["accuracy"], len(part))
  replies = [s for s in part if s.get("nfe")]
  if replies:
    tokens = [s["num_generated_tokens"] for s in replies]
    passes = [s["nfe"] for s in replies]
    row["tokens_per_forward"] = sum(tokens) / sum(passes)
    row["tokens_per_forward_interval"] = ratio_interval(tokens, passes)
    row["num_generated_tokens"], row["nfe"] = sum(tokens), sum(passes)
  cycles = [n for s in part for n in s.get("accepted") or ()]
  if cycles:
    row["accepted_per_cycle"] = statistics.fmean(cycles)
  both = [s for s in part if (task, s["id"]) in reference]
  if both and setting != AR:
    same = [s["token_ids"] == reference[task, s["id"]] for s in both]
    row["same_as_ar"] = [sum(same), len(same)]
  groups = sorted({s["group"] for s in part if s.get("group") is not None})
  row["groups"] = {
    g: statistics.fmean(s["score"] for s in part if s.get("group") == g)
    for g in groups
  }
  return row


def table(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
  """The rows as cells of text, the head first."""
  cells = [
    ["task", "setting", "n", "right %", "95 %", "tokens/forward", "95 %",
     "accepted/cycle", "same as ar"]
  ]  # fmt: skip
  for row in rows:
    low, high = row["accuracy_interval"]
    line = [
      row["task"], row["setting"], str(row["questions"]),
      f"{100 * row['accuracy']:.1f}", f"{100 * low:.1f} to {100 * high:.1f}",
    ]  # fmt: skip
    if "nfe" in row:
      low, high = row["tokens_per_forward_interval"]
      line += [f"{row['tokens_per_forward']:.2f}", f"{low:.2f} to {high:.2f}"]
    else:
      line += ["-", "-"]
    cycle, same = row.get("accepted_per_cycle"), row.get("same_as_ar")
    line.append("-" if cycle is None else f"{cycle:.2f}")
    line.append("-" if same is None else f"{same[0]} of {same[1]}")
    cells.append(line)
  return cells


def text_table(cells: Sequence[Sequence[str]]) -> str:
  """Cells as a Markdown table with columns that line up."""
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = [
    "| " + " | ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) + " |"
    for r in cells
  ]
  return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|",
                    *lines[1:]])  # fmt: skip
