"""Toy runs, in this process or in one of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

from train.configs import tiny

ROOT = Path(__file__).parent.parent.parent
TOY = {
  "steps": 6,
  "batch_size": 4,
  "length": 64,
  "noisy_length": 64,
  "block_lengths": (8,),
  "log_every": 1,
  "data.bins": 2,
  "validation.source": "",
  "eval.every": 0,
  "checkpoint.every": 2,
  "optimizer.name": "adamw",
  "optimizer.warmup": 1,
  "model.vocab_size": 320,
  "model.hidden_size": 32,
  "model.intermediate_size": 64,
  "model.num_layers": 2,
  "model.num_heads": 2,
  "model.num_kv_heads": 1,
  "model.head_dim": 16,
}


def toy(module=tiny, **changes):
  config = module.get_config()
  for key, value in (
    TOY | {k.replace("__", "."): v for k, v in changes.items()}
  ).items():
    *path, name = key.split(".")
    node = config
    for part in path:
      node = node[part]
    node[name] = value
  return config


def command(workdir: Path, *more: str, **changes) -> list[str]:
  given = TOY | {k.replace("__", "."): v for k, v in changes.items()}
  return [
    sys.executable,
    "-m",
    "train.main",
    "--config=train/configs/tiny.py",
    f"--workdir={workdir}",
    *(f"--config.{k}={v}" for k, v in given.items()),
    *more,
  ]


def environment(**more: str) -> dict[str, str]:
  """Of a process that trains; compiled programs are shared with the tests."""
  return os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "2",  # As in the tests' own process.
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    **more,
  }


def run(arguments: list[str], **more: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    arguments, cwd=ROOT, env=environment(**more), capture_output=True, text=True
  )


def lines(workdir: Path) -> list[dict]:
  text = (workdir / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]
