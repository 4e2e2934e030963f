"""report.html: one file that says what was asked and what came of it."""

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemodiff_jax.evaluate import record as folder_of
from nemodiff_jax.evaluate import speed_of_light
from nemodiff_jax.evaluate.results import table

TRACES, REPORT = "traces.json", "report.html"
SHOWN = 10
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; margin: 2em auto;
  max-width: 76em; padding: 0 1em }
table { border-collapse: collapse; font-size: 14px }
td, th { padding: .25em .7em; border-bottom: 1px solid #ddd; text-align: left;
  vertical-align: top }
.figures { display: flex; flex-wrap: wrap; gap: 1em }
figure { margin: 0; max-width: 36em } figcaption { font-weight: 600 }
svg { max-width: 100%; height: auto }
pre { white-space: pre-wrap; margin: .3em 0; font-size: 13px }
.ok { color: #067d3f } .no { color: #b3261e } .note { color: #666 }
"""


def write(folder: Path) -> str | None:
  """Writes report.html from the other files of a run's folder.

  Returns:
    Why there are no figures; None: there are.
  """
  run = folder_of.load_run(folder)
  results = json.loads((folder / folder_of.RESULTS).read_text())
  samples = folder_of.load_samples(folder)
  questions = folder_of.load_questions(folder)
  path = folder / TRACES
  traces = json.loads(path.read_text()) if path.exists() else []
  figures, why = _figures(folder, results["rows"], samples, traces)
  body = [
    _asked(run, len({(s["task"], s["id"]) for s in samples})),
    _results(results),
    figures or f"<p class=note>{html.escape(why or '')}</p>",
    _samples(samples, questions),
    _settings(run),
  ]
  name = ", ".join(t["name"] for t in run["settings"]["tasks"])
  page = (
    f"<!doctype html><html lang=en><meta charset=utf-8><title>{_e(name)}"
    f"</title><style>{_STYLE}</style><h1>{_e(name)}</h1>{''.join(body)}</html>"
  )
  (folder / REPORT).write_text(page, encoding="utf-8")
  return why


def _figures(folder, rows, samples, traces) -> tuple[str, str | None]:
  """HTML of the figures, each of which is a file of its own too."""
  try:
    from nemodiff_jax.evaluate import figures

    drawn = figures.draw(rows, samples, traces)
  except ImportError:
    return "", (
      "no figures: they need matplotlib (pip install 'nemodiff-jax[evaluate]')"
    )
  for title, svg in drawn:
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
  parts = [
    f"<figure><figcaption>{_e(title)}</figcaption>{svg}</figure>"
    for title, svg in drawn
  ]
  return f"<h2>Figures</h2><div class=figures>{''.join(parts)}</div>", None


def _asked(run: dict[str, Any], questions: int) -> str:
  s, made = run["settings"], run["made"]
  commit = (s["environment"]["commit"] or "no checkout")[:12]
  return (
    f"<p>{questions} questions ({_e(', '.join(t['name'] for t in s['tasks']))})"
    f" to <b>{_e(s['checkpoint']['name'])}</b>"
    f" ({_e(s['checkpoint']['sha256'][:12])}), {_e(s['model']['dtype'])}, on"
    f" {_e(s['environment']['device'])}; {_e(made['date'])}, nemodiff"
    f" {_e(s['environment']['nemodiff'])} at {_e(commit)}. Likelihoods are by"
    " the ar head in every mode.</p>"
  )


def _results(results: dict[str, Any]) -> str:
  light = results.get("speed_of_light")
  groups = [r for r in results["rows"] if r["groups"]]
  parts = "".join(
    f"<li>{_e(r['task'])}, {_e(r['setting'])}: "
    + ", ".join(f"{_e(g)} {100 * a:.0f} %" for g, a in r["groups"].items())
    for r in groups
  )
  skipped = "".join(
    f"<li>{_e(s['setting'])}: {_e(s['why'])}" for s in results["skipped"]
  )
  return (
    "<h2>Results</h2>" + _table(table(results["rows"]))
    + (f"<details><summary>by group</summary><ul>{parts}</ul></details>"
       if parts else "")
    + (f"<p>Not decoded:</p><ul>{skipped}</ul>" if skipped else "")
    + ("<h2>Speed of light</h2><p class=note>What a perfect order of reveals"
       " would reach, on the first questions.</p>"
       + _table(speed_of_light.table(light)) if light else "")
  )  # fmt: skip


def _table(cells: Sequence[Sequence[str]]) -> str:
  head = "".join(f"<th>{_e(c)}</th>" for c in cells[0])
  lines = ("".join(f"<td>{_e(c)}</td>" for c in line) for line in cells[1:])
  body = "".join(f"<tr>{line}</tr>" for line in lines)
  return f"<table><tr>{head}</tr>{body}</table>"


def _samples(samples: Sequence[dict], questions: dict) -> str:
  """Ten questions; those that the settings answer differently come first."""
  by: dict[tuple[str, str], list[dict]] = {}
  for s in samples:
    by.setdefault((s["task"], s["id"]), []).append(s)
  order = sorted(
    by, key=lambda k: len({s["score"] for s in by[k]}) < 2
  )  # Stable: else as asked.
  lines = []
  for key in order[:SHOWN]:
    asked = questions.get(key) or by[key][0]  # lm_eval's are in the sample.
    prompt = asked.get("prompt", "")
    if not isinstance(prompt, str):
      prompt = "\n".join(str(m.get("content", "")) for m in prompt)
    answers = "".join(
      f"<details><summary class={'ok' if s['score'] == 1 else 'no'}>"
      f"{_e(s['setting'])}: {_e(_short(s['found']))}</summary>"
      f"<pre>{_e(s.get('text') or '')}</pre></details>"
      for s in by[key]
    )
    lines.append(
      f"<tr><td>{_e(key[1])}<td><pre>{_e(prompt[-600:])}</pre>"
      f"<td>{_e(_short(asked.get('answer')))}<td>{answers}"
    )
  return (
    "<h2>Ten samples</h2><p class=note>Those on which settings differ first."
    " Green: right. A click shows the reply.</p><table><tr><th>id<th>question"
    f"<th>answer<th>found</tr>{''.join(lines)}</table>"
  )


def _settings(run: dict[str, Any]) -> str:
  text = json.dumps(run, indent=2, ensure_ascii=False)
  return f"<details><summary>run.json</summary><pre>{_e(text)}</pre></details>"


def _short(text: Any) -> str:
  text = "nothing" if text is None else str(text).strip()
  return text if len(text) <= 60 else text[:57] + "..."


def _e(text: Any) -> str:
  return html.escape(str(text))
