"""What nemodiff-batch gains and costs, on the cores of this machine.

    python -m benchmarks.fleet [--prompts=512] [--repeats=5]

A job of 16 to 112 tokens a row, embedded checkpoint, ar, 16 at once: one
process of cli.generate with all cores, nemodiff-batch with one actor that has
them all, and with an actor per core. Throughput is that from the first results to the
last; runs alternate; medians, with the least and the largest behind them. Then
an actor alone: until its process answers, reads the model, and has its
programs, new or kept from before. Needs the extra [ray].
"""

import functools
import itertools
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from absl import app, flags

from benchmarks.engine_runs import REPEATS, head, say, spread
from nemodiff_jax.fleet import cluster, source
from nemodiff_jax.fleet.worker import Job, Worker

_PROMPTS = flags.DEFINE_integer("prompts", 512, "Of the job.")
_PART = 64
_HOW = "--mode=ar", "--batch_size=16"
_QUESTION = "How many legs do {} spiders, 4 hens and 6 crabs have in all?"


def write(folder: Path, count: int) -> Path:
  """A prompts file of `count` lines, no two the same."""
  path, draw = folder / f"{count}.jsonl", random.Random(0)
  with path.open("w") as file:
    for i in range(count):
      asked = [{"role": "user", "content": _QUESTION.format(i)}]
      row = {"ignore_eos": True, "max_new_tokens": draw.randint(16, 112)}
      file.write(json.dumps({"messages": asked, **row}) + "\n")
  return path


def tokens(output: Path) -> int:
  """Of the results so far, in a file or in the parts of a folder."""
  files = [output] if output.is_file() else output.glob("part-*")
  count = re.compile(rb'"completion_tokens": (\d+)')
  return sum(int(n) for f in files for n in count.findall(f.read_bytes()))


def timed(command: list[str], output: Path) -> tuple[float, float]:
  """(seconds to the first results, tokens a second from there to the last)."""
  begun = time.monotonic()
  with tempfile.TemporaryFile("w+") as err:
    process = subprocess.Popen([sys.executable, "-m", *command], stderr=err)
    while not (count := tokens(output)) and process.poll() is None:
      time.sleep(0.02)
    first = last = time.monotonic()
    done, running = count, True
    while running:
      running = process.poll() is None
      if (found := tokens(output)) > done:
        done, last = found, time.monotonic()
      time.sleep(0.05)
    if process.wait():
      err.seek(0)
      raise SystemExit(f"{' '.join(command)}\n{err.read()}")
  return first - begun, (done - count) / (last - first)


def throughput(folder: Path) -> None:
  """One process against actors."""
  path, cores = write(folder, _PROMPTS.value), os.cpu_count() or 1
  given = f"--prompts_file={path}", *_HOW
  actors = lambda n: [
    "nemodiff_jax.cli.batch", *given, f"--rows_per_part={_PART}", f"--actors={n}",
  ]  # fmt: skip
  ways = {
    f"one process, {cores} cores": ["nemodiff_jax.cli.generate", *given],
    f"one actor, {cores} cores": actors(1),
    f"{cores} actors, a core each": actors(cores),
  }
  found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
  for run in range(REPEATS.value):
    for i, (way, command) in enumerate(ways.items()):
      output = folder / f"out{run}{i}"
      found[way].append(timed([*command, f"--output={output}"], output))
  single = statistics.median(rate for _, rate in next(iter(found.values())))
  head("", "tok/s", "of one process", "s to the first results")
  for way, pairs in found.items():
    firsts, rates = zip(*pairs, strict=True)
    ratio = statistics.median(rates) / single
    say(way, spread(rates, ".0f"), f"{ratio:.2f}", spread(firsts, ".1f"))


class Probe(Worker):
  """An actor that tells how much memory it has."""

  def resident(self) -> int:
    """Kilobytes, the most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def start(folder: Path) -> None:
  """What an actor costs before it decodes."""
  import ray

  (part,) = source.scan(str(write(folder, _PART)), _PART).parts
  head(
    "an actor", "s to its process", "s to the model", "s to its programs",
    "s to start in all", "MB",
  )  # fmt: skip
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
  with cluster.connected(None, False):
    place = cluster.place(os.cpu_count(), 1, os.cpu_count() or 1)
    job = Job(_HOW, os.getcwd(), str(folder), "jsonl", True, False)
    for way in ("programs compiled", *["programs kept"] * REPEATS.value):
      remote = ray.remote(Probe).options(
        num_cpus=place.cpus,
        runtime_env={"env_vars": cluster.environment(place)},
      )
      say(way, *_costs(functools.partial(remote.remote, job), part, ray.get))


def _costs(make: Callable, part: source.Part, get: Callable) -> list[str]:
  times = [time.monotonic()]
  actor = make()
  reports = []
  for call, *given in (
    (actor.resident,), (actor.serve, part), (actor.serve, part),
  ):  # fmt: skip
    reports.append(get(call.remote(*given)))
    times.append(time.monotonic())
  process, first, again = (b - a for a, b in itertools.pairwise(times))
  if reports[1].failure:
    raise SystemExit(reports[1].failure)
  opened, held = reports[1].opened, get(actor.resident.remote())
  programs = first - again - opened
  found = process, opened, programs, process + opened + programs
  return [*(f"{seconds:.1f}" for seconds in found), f"{held / 1024:.0f}"]


def main(_) -> None:
  """Prints both tables."""
  # Ray's processes yield to others; here they are compared with one of these.
  os.environ.setdefault("RAY_worker_niceness", "0")
  cluster.check_installed()
  with tempfile.TemporaryDirectory() as folder:
    throughput(Path(folder))
    start(Path(folder))


if __name__ == "__main__":
  app.run(main)
