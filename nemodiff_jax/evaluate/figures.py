"""The figures of a run, as SVG; needs matplotlib."""

import io
from collections.abc import Sequence
from typing import Any

from nemodiff_jax.evaluate import traced
from nemodiff_jax.evaluate.record import Sample

COLORS = {
  "ar": "#222222",
  "diffusion": "#d55e00",
  "linear_spec": "#0072b2",
  "quadratic_spec": "#009e73",
}
_SIZE = (5.6, 3.6)
_STEPS = ", steps"  # Ends the name of a curve over steps per block.


def draw(
  rows: Sequence[dict[str, Any]],
  samples: Sequence[Sample],
  traces: Sequence[dict[str, Any]],
) -> list[tuple[str, str]]:
  """(what it shows, SVG) of every figure that there is something for.

  Args:
    rows: of results.json.
    samples: of samples.jsonl.
    traces: of traces.json.

  Raises:
    ImportError: no matplotlib.
  """
  import matplotlib

  matplotlib.rcParams.update(
    {"svg.hashsalt": "nemodiff", "font.size": 9, "axes.grid": True,
     "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False}
  )  # fmt: skip
  judged = {
    s: [tuple(j) for t in traces if t["setting"] == s for j in t["judged"]]
    for s in dict.fromkeys(t["setting"] for t in traces)
  }
  cycles: dict[str, list[int]] = {}
  for sample in samples:
    if sample.get("accepted"):
      cycles.setdefault(sample["setting"], []).extend(sample["accepted"])
  passes = {
    t["setting"]: [
      n for u in traces if u["setting"] == t["setting"] for n in u["passes"]
    ]
    for t in traces
  }
  passes = {s: many for s, many in passes.items() if len(set(many)) > 1}
  figures = [
    _quality(task, [r for r in rows if r["task"] == task and "nfe" in r])
    for task in dict.fromkeys(r["task"] for r in rows if "nfe" in r)
  ]
  if cycles:
    bars = _histogram(cycles, "tokens accepted in a cycle", "cycles")
    figures += [("accepted length of a cycle", bars), _by_slot(cycles)]
  if any(judged.values()):
    figures.append(_calibration({s: j for s, j in judged.items() if j}))
  if passes:
    label = "passes of a block, its commit included"
    figures.append(("nfe per block", _histogram(passes, label, "blocks")))
  return figures


def mode_of(setting: str) -> str:
  """'diffusion C=16 t=0.9' -> 'diffusion'."""
  return setting.split()[0]


def _curve(setting: str) -> str:
  """Settings of one curve: they differ in one number alone."""
  parts = setting.split()
  if parts[0] == "diffusion":
    return " ".join(parts[:2]) + (_STEPS if "s=" in setting else "")
  return parts[0]


def _quality(task: str, rows: Sequence[dict[str, Any]]) -> tuple[str, str]:
  figure, axes = _axes()
  curves: dict[str, list[dict]] = {}
  for row in rows:
    curves.setdefault(_curve(row["setting"]), []).append(row)
  plain = list(dict.fromkeys(name.removesuffix(_STEPS) for name in curves))
  for name, part in curves.items():
    part = sorted(part, key=lambda r: r["tokens_per_forward"])
    x = [r["tokens_per_forward"] for r in part]
    y = [100 * r["accuracy"] for r in part]
    low, high = zip(*(r["accuracy_interval"] for r in part), strict=True)
    error = [
      [max(0.0, b - 100 * a) for a, b in zip(low, y, strict=True)],
      [max(0.0, 100 * a - b) for a, b in zip(high, y, strict=True)],
    ]
    axes.errorbar(
      x, y, error, label=name, color=_shade(name.removesuffix(_STEPS), plain),
      marker="*" if name == "ar" else "o", markersize=10 if name == "ar" else 5,
      linestyle=":" if name.endswith(_STEPS) else "-",
      capsize=2, linewidth=1.3, elinewidth=0.7,
    )  # fmt: skip
    if name == "ar":
      axes.axhline(y[0], color=COLORS["ar"], linewidth=0.6, alpha=0.5)
  axes.set_xlabel("tokens per forward pass")
  axes.set_ylabel("right, % (95 % interval)")
  axes.set_xlim(left=0)
  axes.legend(frameon=False)
  return f"{task}: accuracy against tokens per forward", _svg(figure)


def _histogram(counts: dict[str, list[int]], label: str, of: str) -> str:
  """SVG: the share of each count among those of a setting, as bars.

  Args:
    counts: by setting, from 1.
    label: of the axis of counts.
    of: what is counted once per count.
  """
  figure, axes = _axes()
  longest = max(map(max, counts.values()))
  width = 0.8 / len(counts)
  for i, (setting, many) in enumerate(counts.items()):
    share = [100 * many.count(n) / len(many) for n in range(1, longest + 1)]
    at = [n + (i - (len(counts) - 1) / 2) * width
          for n in range(1, longest + 1)]  # fmt: skip
    axes.bar(at, share, width, label=setting, color=_shade(setting, counts))
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.set_xlabel(label)
  axes.set_ylabel(f"{of}, %")
  axes.legend(frameon=False)
  return _svg(figure)


def _by_slot(cycles: dict[str, list[int]]) -> tuple[str, str]:
  figure, axes = _axes()
  for setting, many in cycles.items():
    size = int(setting.split("C=")[1].split()[0])
    share = traced.acceptance_by_slot(many, size)
    axes.plot(
      range(1, size + 1), [100 * s for s in share], marker=".",
      label=setting, color=_shade(setting, cycles),
    )  # fmt: skip
  axes.set_xlabel("slot of the block")
  axes.set_ylabel("cycles that accept it, %")
  axes.set_ylim(0, 103)
  axes.legend(frameon=False)
  return "acceptance by slot", _svg(figure)


def _calibration(judged: dict[str, list]) -> tuple[str, str]:
  figure, axes = _axes()
  axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
  for setting, many in judged.items():
    bins = traced.calibration(many)
    axes.scatter(
      [b["confidence"] for b in bins], [b["right"] for b in bins],
      s=[8 + 90 * (b["count"] / len(many)) ** 0.5 for b in bins],
      label=f"{setting}, {len(many)} drafts", color=_shade(setting, judged),
    )  # fmt: skip
  axes.set_xlabel("confidence of a draft token (larger dots: more tokens)")
  axes.set_ylabel("share that the verifier confirms")
  axes.set_ylim(-0.03, 1.2)  # Room for the legend: no share is above 1.
  axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
  axes.legend(frameon=False, loc="upper left")
  return "calibration of drafts", _svg(figure)


def _shade(setting: str, among: Sequence[str] | dict) -> Any:
  """The mode's colour, lighter for each further setting of the mode."""
  from matplotlib import colors

  same = [s for s in among if mode_of(s) == mode_of(setting)]
  back = 0.6 * same.index(setting) / max(1, len(same) - 1)
  mine = colors.to_rgb(COLORS[mode_of(setting)])
  return tuple(c + (1 - c) * back for c in mine)


def _axes():
  from matplotlib.figure import Figure

  figure = Figure(figsize=_SIZE, layout="constrained")
  return figure, figure.subplots()


def _svg(figure) -> str:
  out = io.StringIO()
  figure.savefig(out, format="svg", metadata={"Date": None})
  text = out.getvalue()
  return text[text.index("<svg") :]
