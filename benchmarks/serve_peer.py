"""`transformers serve` beside our server: the same weights, requests and texts.

The peer is a command of another environment, with torch and
transformers[serving], such as `--peer='/tmp/peer/bin/transformers serve'`.
"""

import asyncio
import contextlib
import functools
import json
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors.numpy import load_file, save_file

from benchmarks import engine_runs as driven
from benchmarks.serve_clients import Tally, ask, stream

CLIENTS = 1, 16
_THINGS = (
  "a river", "the sea", "bread", "a clock", "winter", "a bridge", "the moon",
  "glass", "a garden", "iron", "a school", "the wind", "paper", "a harbour",
  "salt", "a road",
)  # fmt: skip
PROMPTS = [f"Here is a long story about {x}. Once" for x in _THINGS]


def measure(ours: str, folder: Path, command: str, new: int) -> None:
  """A table of tokens per second of both.

  Args:
    ours: address of our server, which serves `folder` in ar.
    folder: a checkpoint as `make smollm2` leaves it.
    command: that starts the peer.
    new: tokens of an answer, at most.
  """
  with tempfile.TemporaryDirectory() as temporary:
    write_ministral(folder, Path(temporary))
    with served(command, temporary) as theirs:
      bodies = [_body(temporary, p, new) for p in PROMPTS]
      lengths = asyncio.run(_lengths(ours, bodies))
      pair = (asyncio.run(_texts(url, bodies)) for url in (ours, theirs))
      same = sum(map(str.__eq__, *pair))
      ways: dict[str, Callable[[], int]] = {}
      for count in CLIENTS:
        for name, url in (("ours", ours), ("transformers serve", theirs)):
          run = functools.partial(_all_of, url, bodies[:count], lengths)
          ways[f"{name}, {count}"] = run
      found = driven.rates(ways, first=False)  # The texts were its warm-up.
  driven.head("server, clients", "tok/s")
  for name, values in found.items():
    driven.say(name, driven.spread(values, ".1f"))
  for count in CLIENTS:
    pair = f"ours, {count}", f"transformers serve, {count}"
    driven.say(
      f"ours / transformers serve, {count}", driven.ratio(found, *pair)
    )
  driven.say("texts that are equal", f"{same} of {len(PROMPTS)}")


def write_ministral(source: Path, target: Path) -> None:
  """The folder's ar model as transformers reads one."""
  given = json.loads((source / "config.json").read_text())
  given.pop("dlm_paradigm")
  given |= {
    "architectures": ["Ministral3ForCausalLM"], "model_type": "ministral3",
  }  # fmt: skip
  rope = given["rope_parameters"]
  if not rope.get("original_max_position_embeddings"):  # It divides by it.
    rope["original_max_position_embeddings"] = given["max_position_embeddings"]
  (target / "config.json").write_text(json.dumps(given))
  for path in source.iterdir():
    if path.suffix == ".safetensors":
      rename = lambda n: n.replace("encoder.", "model.").replace(
        "diffusion_head", "lm_head"
      )
      tensors = {rename(n): x for n, x in load_file(path).items()}
      save_file(tensors, target / path.name, {"format": "pt"})
    elif path.name != "config.json":
      shutil.copy(path, target)


@contextlib.contextmanager
def served(command: str, folder: str) -> Iterator[str]:
  """The address of the peer, once it is healthy."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  how = f"--host 127.0.0.1 --port {port} --device cpu --dtype float32"
  process = subprocess.Popen([*shlex.split(command), folder, *how.split()])
  try:
    url = f"http://127.0.0.1:{port}"
    while True:
      if process.poll() is not None:
        raise OSError(f"the peer ended with {process.returncode}: {command}")
      with contextlib.suppress(OSError):
        urllib.request.urlopen(f"{url}/health")
        break
      time.sleep(0.5)
    yield url
  finally:
    process.terminate()
    process.wait()


def _body(model: str, prompt: str, new: int) -> dict:
  return {
    "model": model, "prompt": prompt, "max_tokens": new, "temperature": 0,
    "seed": 0,
  }  # fmt: skip


async def _lengths(url: str, bodies: list[dict]) -> dict[str, int]:
  """Tokens of each answer: the peer does not say how many in a stream."""
  found = {}
  for body in bodies:
    async for answer in stream(url, "/v1/completions", body):
      found[body["prompt"]] = answer["usage"]["completion_tokens"]
  return found


async def _texts(url: str, bodies: list[dict]) -> list[str]:
  """Asks all at once."""
  asked = (ask(url, "/v1/completions", b, Tally(), 0) for b in bodies)
  return await asyncio.gather(*asked)


def _all_of(url: str, bodies: list[dict], lengths: dict[str, int]) -> int:
  """Tokens of answers that are asked for at once."""
  asyncio.run(_texts(url, bodies))
  return sum(lengths[body["prompt"]] for body in bodies)
