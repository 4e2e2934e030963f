"""Ten minutes on a GPU: everything worth knowing, what matters first.

    python -m benchmarks.gpu_visit --out=DIR [--parts=suite,decode] [--limit=S]
    JAX_PLATFORMS=cpu python -m benchmarks.gpu_visit --out=DIR --toy

From a checkout, with the machine's own Python: jax with CUDA, flax, numpy,
jaxtyping, optax and what reads a checkpoint have to be there, nothing is
installed. Weights are random and made on the device.

Each part is a process with a time limit. Every figure is a line of
DIR/results.jsonl as soon as it is measured, and so is each part's end; what was
done before the end is kept. DIR/visit.md is the table of all calls so far with
this DIR, beside the predictions of `benchmarks.roofline`; a later figure takes
the place of an earlier one. Programs are kept in DIR/compiled, so a part that
met its limit gets further the next time.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

# Seconds; ten minutes together. The order is that of worth.
LIMITS = {
  "suite": 90,
  "modes": 70,
  "floors": 30,
  "decode": 220,
  "attention": 100,
  "train": 90,
}
PARTS_MODULE = "benchmarks.visit_parts"


def run_part(part: str, out: Path, limit: float, toy: bool) -> dict:
  """Runs one part as a process; its end as a line of the results."""
  command = [sys.executable, "-m", PARTS_MODULE, part, f"--out={out}"]
  log = out / f"{part}.log"
  start = time.monotonic()
  with log.open("a", encoding="utf-8") as file:
    process = subprocess.Popen(
      command + ["--toy"] * toy,
      stdout=file,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )
    try:
      code = process.wait(limit)
      end = "done" if code == 0 else f"failed: {last_line(log)}"
    except subprocess.TimeoutExpired:
      end = f"stopped at its limit of {limit:.0f} s"
    finally:
      if process.poll() is None:  # Also where this process is interrupted.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
  seconds = round(time.monotonic() - start, 1)
  return {"part": part, "toy": toy, "end": end, "seconds": seconds}


def last_line(log: Path) -> str:
  """What a process said last."""
  lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
  return next((x.strip()[:200] for x in reversed(lines) if x.strip()), "")


def append(path: Path, line: dict) -> None:
  """One more line, on the disk before this returns."""
  with path.open("a", encoding="utf-8") as file:
    file.write(json.dumps(line) + "\n")
    file.flush()
    os.fsync(file.fileno())


def read(path: Path) -> list[dict]:
  """The lines of a file; one that was cut short is left out."""
  lines = []
  for text in path.read_text(encoding="utf-8").splitlines():
    try:
      lines.append(json.loads(text))
    except ValueError:
      continue
  return lines


def table(lines: list[dict]) -> str:
  """Every figure beside its prediction, as Markdown."""
  figures = {(x["part"], x["what"]): x for x in lines if "what" in x}
  ends = {x["part"]: x for x in lines if "end" in x}
  said = ["# A visit to a GPU", ""]
  devices = {(x["device"], x["jax"], x["toy"]) for x in figures.values()}
  said += [
    f"{device}, jax {version}{', toy sizes: no figure means anything' * toy}"
    for device, version, toy in sorted(devices)
  ]
  for part in LIMITS:
    rows = [x for (name, _), x in figures.items() if name == part]
    if part not in ends and not rows:
      continue
    end = ends.get(part, {"end": "not ended", "seconds": "?"})
    said += ["", f"## {part}: {end['end']} ({end['seconds']} s)", ""]
    if rows:
      said += ["| what | measured | predicted | measured / predicted | date |"]
      said += ["|---|---|---|---|---|", *map(cells, rows)]
  return "\n".join(said) + "\n"


def cells(x: dict) -> str:
  """A row of the table."""
  likely = x.get("predicted")
  measured = x.get("error") or f"{x['value']:.4g} {x['unit']}"
  if x.get("right") is False:
    measured += " **WRONG**"
  ratio = "-"
  if likely is not None and "value" in x:
    ratio = f"{x['value'] / likely:.2f}"
  likely = "-" if likely is None else f"{likely:.4g}"
  measured = measured.replace("|", "/").replace("\n", " ")
  return f"| {x['what']} | {measured} | {likely} | {ratio} | {x['time'][:10]} |"


def main() -> None:
  """Runs the parts and writes the table after each."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", type=Path, required=True)
  parser.add_argument("--parts", default=",".join(LIMITS))
  parser.add_argument("--limit", type=float, help="seconds of each part")
  parser.add_argument("--toy", action="store_true", help="tiny, anywhere")
  args = parser.parse_args()
  parts = args.parts.split(",")
  if unknown := [p for p in parts if p not in LIMITS]:
    parser.error(f"--parts should be of {','.join(LIMITS)}, got {unknown}")
  if args.limit is not None and args.limit <= 0:
    parser.error(f"--limit should be above 0 seconds, got {args.limit}")
  args.out.mkdir(parents=True, exist_ok=True)
  results, shown = args.out / "results.jsonl", ""
  for part in parts:
    end = run_part(part, args.out, args.limit or LIMITS[part], args.toy)
    append(results, end)
    lines = [x for x in read(results) if x["toy"] == args.toy]
    shown = table(lines)
    (args.out / "visit.md").write_text(shown, encoding="utf-8")
    print(f"{part}: {end['end']} ({end['seconds']} s)", flush=True)
  print(f"\n{shown}")


if __name__ == "__main__":
  main()
