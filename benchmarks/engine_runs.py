"""Runs of an engine that alternate, and tables of them."""

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.decode_cpu import SHAPES, spread
from nemodiff_jax import api
from nemodiff_jax.decode.config import RowSettings
from nemodiff_jax.decode.state import Weights
from nemodiff_jax.nn.model import Transformer, init_params
from nemodiff_jax.serve.engine import Engine

REPEATS = flags.DEFINE_integer("repeats", 5, "Runs of each.")
Requests = Sequence[tuple[list[int], RowSettings]]


def shape_135m() -> api.Model:
  """SmolLM2-135M's shape with random weights."""
  config = SHAPES["135M"]
  params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
  module = Transformer(config, jnp.float32)
  return api.Model(config, None, None, module, Weights(params))


def say(*cells: object) -> None:
  """A line of a Markdown table."""
  print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def head(*cells: str) -> None:
  """The first lines of a table."""
  print()
  say(*cells)
  say(*["---"] * len(cells))


def ready(engine: Engine) -> Engine:
  """The engine with every program compiled."""
  for key in engine.warm_up():
    print("compiling", *key, file=sys.stderr, flush=True)
  return engine


def run(engine: Engine, requests: Requests, at_once: int | None = None) -> int:
  """Tokens of all requests, with so many in the engine at once."""
  engine.cache.pages.flush()
  waiting, inside, tokens = list(requests), 0, 0
  while waiting or inside:
    while waiting and (at_once is None or inside < at_once):
      engine.submit(*waiting.pop(0))
      inside += 1
    for event in engine.step():
      inside -= event.ended
      tokens += len(event.tokens)
  return tokens


class Peer:
  """Fixed batches of another checkout, in a process of its own."""

  def __init__(self, checkout: str, mode: str, requests: Requests):
    script = pathlib.Path(__file__).with_name("engine_peer.py")
    self._process = subprocess.Popen(
      [sys.executable, script, mode],
      env=os.environ | {"PYTHONPATH": checkout},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self._send(json.dumps([(p, row.max_new_tokens) for p, row in requests]))

  def __call__(self) -> int:
    """Tokens of all requests."""
    self._send("")
    assert self._process.stdout is not None
    return int(self._process.stdout.readline())

  def close(self) -> None:
    """Ends the process."""
    self._process.terminate()
    self._process.wait()

  def _send(self, line: str) -> None:
    assert self._process.stdin is not None
    self._process.stdin.write(line + "\n")
    self._process.stdin.flush()


def rates(
  ways: dict[str, Callable[[], int]], first: bool = True
) -> dict[str, list[float]]:
  """Tokens per second of each way, in runs that alternate."""
  found: dict[str, list[float]] = {name: [] for name in ways}
  for turn in range(REPEATS.value + first):
    for name, way in ways.items():
      start = time.perf_counter()
      tokens = way()
      if turn >= first:  # The first compiles, and fills what learns.
        found[name].append(tokens / (time.perf_counter() - start))
  return found


def ratio(found: dict[str, list[float]], ours: str, base: str) -> str:
  """Ours by the base, run by run."""
  pairs = zip(found[ours], found[base], strict=True)
  return spread([a / b for a, b in pairs])


def random_prompts(model, sizes: Sequence[int]) -> list[list[int]]:
  """Ids that are no special ones."""
  draw = np.random.default_rng(0)
  return [draw.integers(5, model.config.vocab_size, n).tolist() for n in sizes]
