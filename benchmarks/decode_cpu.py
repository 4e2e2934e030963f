"""Speed and memory of decoding on a CPU, as ratios within one run (float32).

    make bench                       or, with torch in another environment,
    PEER_PYTHON=... .venv/bin/python benchmarks/decode_cpu.py

1. ar at batch 1 against transformers' `generate` with the same weights.
2. A batch of 16 ragged prompts against 16 single runs, ar and linear_spec.
3. Memory: what loading needs beside the parameters.

Runs alternate (ours, peer, ours, ...); figures are medians, ratios with the least
and the largest.
"""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import jax
import numpy as np

from checkpoints_convert.hf_folder import write_folder
from nemodiff_jax import api
from nemodiff_jax.decode.config import RowSettings, decode_config
from nemodiff_jax.evaluate.peer import Peer
from nemodiff_jax.io.checkpoint import tensor_table
from nemodiff_jax.io.hf_config import to_hf
from nemodiff_jax.nn.config import ModelConfig, RopeConfig
from nemodiff_jax.nn.model import count_params, init_params

ROPE = RopeConfig(
  1e6, factor=16.0, original_max=16384, query_scale=0.1, attention_factor=1.0
)
REPEATS = 5


def shape(hidden, ffn, layers, heads, kv_heads, head_dim, vocab) -> ModelConfig:
  return ModelConfig(
    vocab_size=vocab,
    hidden_size=hidden,
    intermediate_size=ffn,
    num_layers=layers,
    num_heads=heads,
    num_kv_heads=kv_heads,
    head_dim=head_dim,
    max_positions=8192,
    rope=ROPE,
    block_size=16,
    mask_id=4,
    bos_id=1,
    eos_ids=(2,),
  )


SHAPES = {
  "1M": shape(128, 384, 4, 4, 2, 32, 512),
  "2M": shape(192, 576, 5, 6, 2, 32, 512),
  "4M": shape(256, 768, 5, 8, 2, 32, 512),
  "135M": shape(576, 1536, 30, 9, 3, 64, 49152),
}


def timed(run) -> tuple[float, object]:
  start = time.perf_counter()
  out = run()
  return time.perf_counter() - start, out


def spread(values: Sequence[float], form: str = ".2f") -> str:
  """Median, and the least and the largest."""
  low, high = min(values), max(values)
  return f"{statistics.median(values):{form}} ({low:{form}} to {high:{form}})"


def decode(model, prompts, tokens, mode="ar"):
  config = decode_config(model.config, mode)
  rows = [RowSettings(max_new_tokens=tokens, ignore_eos=True)] * len(prompts)
  return list(api.generate_rows(model, config, prompts, rows, len(prompts)))


def against_transformers(name: str, folder: str, model, tokens: int) -> None:
  prompt = np.random.default_rng(0).integers(5, 500, 32).tolist()
  peer = Peer(folder)
  ours = lambda: decode(model, [prompt], tokens)[0]
  same = ours().token_ids == peer.run([prompt], tokens)["ids"][0]
  mine, theirs = [], []
  for _ in range(REPEATS):
    mine.append(timed(ours)[0])
    theirs.append(peer.run([prompt], tokens)["seconds"])
  a, b = statistics.median(mine), statistics.median(theirs)
  ratio = spread([y / x for x, y in zip(mine, theirs, strict=True)])
  peer.close()
  print(
    f"| {name} | {tokens / a:.0f} | {tokens / b:.0f} | {ratio} |"
    f" {'yes' if same else 'no'} |"
  )


def batch_of_16(name: str, model, mode: str, tokens: int) -> None:
  rng = np.random.default_rng(1)
  sizes = rng.integers(4, 64, 16)
  prompts = [rng.integers(5, 500, n).tolist() for n in sizes]
  together = lambda: decode(model, prompts, tokens, mode)
  single = lambda: [decode(model, [p], tokens, mode)[0] for p in prompts]
  same = together() == single()
  pairs = [(timed(together)[0], timed(single)[0]) for _ in range(3)]
  a, b = (statistics.median(x) for x in zip(*pairs, strict=True))
  ratio = spread([x / y for x, y in pairs])
  print(
    f"| {name} | {mode} | {a:.2f} | {b:.2f} | {ratio} |"
    f" {'yes' if same else 'no'} |"
  )


LOADING = """
import sys, threading, time, jax
from nemodiff_jax import api
def held():  # Anonymous memory: the mapped file is not the process's own.
  lines = open('/proc/self/status').read().splitlines()
  return next(int(x.split()[1]) for x in lines if 'RssAnon' in x) * 1024
def watch():
  while True:
    seen.append(held())
    time.sleep(0.001)
jax.block_until_ready(jax.numpy.ones(3) + 1)
before, seen = held(), []
threading.Thread(target=watch, daemon=True).start()
model = api.load(sys.argv[1])
print(max(seen) - before)
"""


def memory(folder: str, config: ModelConfig) -> None:
  """Peak memory of a process that only loads the checkpoint (Linux)."""
  out = subprocess.run(
    [sys.executable, "-c", LOADING, folder],
    capture_output=True,
    text=True,
    check=True,
  )
  sizes = [4 * int(np.prod(t.shape)) for t in tensor_table(config).values()]
  params, largest, peak = sum(sizes), max(sizes), int(out.stdout)
  mib = 2**20
  print(
    f"| {params / mib:.0f} | {largest / mib:.0f} | {peak / mib:.0f}"
    f" | {(peak - params) / largest:.2f} |"
  )


def main() -> None:
  print(
    f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores {platform.machine()},"
    f" Python {platform.python_version()}, jax {jax.__version__}\n"
  )
  with tempfile.TemporaryDirectory() as root:
    models = {}
    for name, config in SHAPES.items():
      folder = f"{root}/{name}"
      params = init_params(config, jax.random.key(0))
      write_folder(folder, to_hf(config), tensor_table(config), params)
      models[name] = api.load(folder)
    print("| ar, batch 1 | tok/s | transformers | ratio | same ids |")
    print("|---|---|---|---|---|")
    for name, model in models.items():
      size = count_params(model.weights.params) / 1e6
      tokens = 64 if size > 50 else 128
      label = f"{name} ({size:.2f} M)"
      against_transformers(label, f"{root}/{name}", model, tokens)
    print("\n| batch of 16 | mode | together s | 16 single s | ratio | same |")
    print("|---|---|---|---|---|---|")
    for name in ("2M", "135M"):
      for mode in ("ar", "linear_spec"):
        tokens = {"ar": 64, "linear_spec": 16}[mode]
        batch_of_16(name, models[name], mode, tokens)
    print(
      "\n| loading: parameters MiB | largest tensor | peak | (peak - parameters) / largest |"
    )
    print("|---|---|---|---|")
    memory(f"{root}/135M", SHAPES["135M"])


if __name__ == "__main__":
  main()
