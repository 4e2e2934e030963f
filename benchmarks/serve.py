"""The server under load: faults, leaks, throughput, and what HTTP costs.

    python -m benchmarks.serve [--measure=load,throughput] [--seconds=60]

load        streaming clients that come again and again, of which a tenth goes
            away: errors, texts that differ from the same request alone, rows,
            pages and memory that are left, time to the first text
throughput  ar with 1 and 16 clients, and the engine driven directly
peer        ar with 1 and 16 clients, and `transformers serve` (--peer) with the
            weights of --folder, as `make smollm2` leaves them

The server is a process of its own. Programs are compiled before anything is
timed. Figures are medians, with the least and the largest behind them.
"""

import asyncio
import contextlib
import functools
import json
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

from benchmarks import engine_runs as driven
from benchmarks import serve_peer
from benchmarks.serve_clients import Tally, ask, requests
from nemodiff_jax import api, serving
from nemodiff_jax.decode.config import RowSettings, decode_config
from nemodiff_jax.engines import open_engine

_MEASURE = flags.DEFINE_list(
  "measure", ["load", "throughput"], "What to measure."
)
_SECONDS = flags.DEFINE_float("seconds", 60.0, "Of load.")
_CLIENTS = flags.DEFINE_integer("clients", 64, "That load the server at once.")
_SHAPES = flags.DEFINE_list("shapes", ["embedded", "135M"], "Of throughput.")
_NEW = flags.DEFINE_integer(
  "new_tokens", None, "Of throughput's answers. Default: 200; 135M: 128."
)
_PEER = flags.DEFINE_string(
  "peer", "transformers serve", "The command that starts the peer."
)
_FOLDER = flags.DEFINE_string(
  "folder", ".cache/smollm2", "Shared with the peer."
)
_HOST = flags.DEFINE_string("host_shape", None, "Be the server, of this shape.")
_ROWS = 16
_GONE = 0.1  # Of the clients, while their answer comes.
_MAX_LENGTH = 700


def open_shape(shape: str) -> api.Model:
  """The embedded model, random weights of a shape, or a folder."""
  if shape == "135M":
    return driven.shape_135m()
  return api.load(None if shape == "embedded" else shape)


def host(shape: str) -> None:
  """Serves a shape at a free port, until it is told to end."""
  from nemodiff_jax.serve.run import run_server

  def load() -> tuple[Any, Any]:
    model = open_shape(shape)
    config = decode_config(model.config, "ar")
    served, lanes = serving.open_server(
      model, config, name=shape, rows=_ROWS, max_length=_MAX_LENGTH
    )
    for _ in lanes.warm_up():
      pass
    return served, lanes

  run_server(load, "127.0.0.1", 0, None, 10.0)


@contextlib.contextmanager
def server(shape: str) -> Iterator[tuple[str, int]]:
  """The address of a server, and its process id."""
  command = [sys.executable, "-m", "benchmarks.serve", f"--host_shape={shape}"]
  process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
  assert process.stderr is not None
  url = process.stderr.readline().split()[-1]
  try:
    while True:
      with contextlib.suppress(OSError):
        urllib.request.urlopen(f"{url}/health")
        break
      time.sleep(0.2)
    yield url, process.pid
  finally:
    process.terminate()
    process.wait()


async def client(
  url: str, alone: Sequence[str], end: float, seed: int, tally: Tally
) -> None:
  """Asks until the time has come; leaves a tenth of the answers."""
  draw, asked = random.Random(seed), requests()
  while time.monotonic() < end:
    i = draw.randrange(len(asked))
    leave = draw.randint(1, 3) if draw.random() < _GONE else 0
    try:
      text = await ask(url, *asked[i], tally, leave)
    except (OSError, asyncio.IncompleteReadError) as e:
      tally.errors.append(str(e))
      continue
    whole = text == alone[i] or (leave and alone[i].startswith(text))
    tally.differing += not whole


async def crowd(
  url: str, pid: int, alone: Sequence[str], seconds: float
) -> Tally:
  """What clients see in so many seconds."""
  tally, end = Tally(), time.monotonic() + seconds
  clients = [
    asyncio.create_task(client(url, alone, end, i, tally))
    for i in range(_CLIENTS.value)
  ]
  await asyncio.sleep(min(10.0, seconds / 2))
  tally.resident.append(resident(pid))
  await asyncio.sleep(max(0.0, end - time.monotonic()))
  tally.resident.append(resident(pid))
  await asyncio.gather(*clients)
  return tally


def resident(pid: int) -> int:
  """Bytes of memory of a process."""
  lines = Path(f"/proc/{pid}/status").read_text().splitlines()
  return 1024 * next(int(x.split()[1]) for x in lines if x.startswith("VmRSS"))


def state(url: str) -> dict[str, float]:
  """The engine's own figures."""
  with urllib.request.urlopen(f"{url}/server_info") as found:
    return json.load(found)["internal_states"][0]


def load() -> None:
  """Many clients for a while, and what is left of them."""
  with server("embedded") as (url, pid):

    async def one_by_one() -> list[str]:
      return [await ask(url, *r, Tally(), 0) for r in requests()]

    alone = asyncio.run(one_by_one())
    asyncio.run(crowd(url, pid, alone, 30.0))  # Compiles what is left.
    tally = asyncio.run(crowd(url, pid, alone, _SECONDS.value))
    end = time.monotonic() + 20
    while (left := state(url))["running"] and time.monotonic() < end:
      time.sleep(0.1)
  firsts = sorted(tally.firsts)
  at = lambda q: f"{1000 * firsts[int(q * (len(firsts) - 1))]:.0f} ms"
  early, late = tally.resident
  driven.head(f"{_CLIENTS.value} clients, {_SECONDS.value:.0f} s", "")
  driven.say("answers read to their end", tally.whole)
  driven.say("answers that clients left", tally.gone)
  driven.say("errors", len(tally.errors), *tally.errors[:1])
  driven.say("texts that differ from the same request alone", tally.differing)
  driven.say("rows left", int(left["running"] + left["waiting"]))
  driven.say("pages left", int(left["pages_used"]))
  driven.say("memory at the end / after 10 s", f"{late / early:.3f}")
  driven.say("first text, p50 and p99", f"{at(0.5)}, {at(0.99)}")


def throughput(shape: str) -> None:
  """Ar by HTTP with 1 and 16 clients, streamed or not, and without HTTP."""
  model = open_shape(shape)
  prompts = driven.random_prompts(model, [32] * _ROWS)
  new = _NEW.value or (200 if shape == "embedded" else 128)
  row = RowSettings(new, ignore_eos=True)
  config = decode_config(model.config, "ar")
  engine = driven.ready(
    open_engine(model, config, rows=_ROWS, max_length=_MAX_LENGTH)
  )
  params = {"max_new_tokens": new, "ignore_eos": True, "temperature": 0}

  def served(url: str, count: int, streamed: bool) -> int:
    async def one(prompt) -> None:
      body = {"input_ids": prompt, "sampling_params": params}
      await ask(url, "/generate", body | {"stream": streamed}, Tally(), 0)

    async def all_of_them() -> None:
      urllib.request.urlopen(f"{url}/flush_cache")
      await asyncio.gather(*(one(p) for p in prompts[:count]))

    asyncio.run(all_of_them())
    return count * new

  with server(shape) as (url, _):
    ways = {
      "16 engine": lambda: driven.run(engine, [(p, row) for p in prompts])
    }
    for count in (1, _ROWS):
      for streamed in (False, True):
        name = f"{count} {'streamed' if streamed else 'whole'}"
        ways[name] = functools.partial(served, url, count, streamed)
    found = driven.rates(ways)
  driven.head(f"{shape}, ar", "tok/s", "")
  for name, values in found.items():
    driven.say(name, driven.spread(values, ".0f"), "")
  for ours, base in (
    ("16 whole", "1 whole"),
    ("16 streamed", "1 streamed"),
    ("16 whole", "16 engine"),
    ("16 streamed", "16 engine"),
  ):
    driven.say(f"{ours} / {base}", "", driven.ratio(found, ours, base))


def main(_) -> None:
  if _HOST.value is not None:
    host(_HOST.value)
    return
  device = jax.devices()[0]
  print(json.dumps({"device": device.device_kind, "jax": jax.__version__}))
  for part in _MEASURE.value:
    print(f"\n{part}", flush=True)
    if part == "load":
      load()
    elif part == "throughput":
      for shape in _SHAPES.value:
        throughput(shape)
    elif part == "peer":
      folder = _FOLDER.value
      with server(folder) as (url, _):
        serve_peer.measure(url, Path(folder), _PEER.value, _NEW.value or 64)
    else:
      raise app.UsageError(
        f"measure should be load, throughput or peer, got {part!r}."
      )


if __name__ == "__main__":
  app.run(main)
