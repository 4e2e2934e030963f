"""Toy runs, in this process or in one of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

from nemodiff_jax import api
from train import evaluate
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


_FORKS = """
import json, os, sys
from absl import app
from train import main

for given in json.load(sys.stdin):
  read, write = os.pipe()
  if not (child := os.fork()):
    os.dup2(write, 2)
    sys.argv[1:] = given  # Read once more for the keys of a configuration.
    status = 0
    try:
      app.run(main.main, flags_parser=main.parse)
    except SystemExit as e:
      status = e.code
    os._exit(status)
  os.close(write)
  said = os.fdopen(read).read()
  status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  print(json.dumps((status, said)))
"""


def run_all(commands: list[list[str]]) -> list[subprocess.CompletedProcess]:
  """`python -m train.main` with each of these flags; imports happen once."""
  done = subprocess.run(
    [sys.executable, "-W", "ignore", "-c", _FORKS],
    cwd=ROOT, env=environment(PYTHONPATH=str(ROOT)), text=True,
    input=json.dumps(commands), capture_output=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  found = map(json.loads, done.stdout.splitlines())
  return [
    subprocess.CompletedProcess(given, status, "", said)
    for given, (status, said) in zip(commands, found, strict=True)
  ]


def export_decodes(folder: Path, config) -> api.Model:
  """The model of an export; its evaluated modes say the same, losslessly."""
  model = api.load(str(folder))
  asked = [q.prompt for q in evaluate.load_questions(config.eval)]
  how = {"max_new_tokens": config.eval.max_new_tokens, "batch_size": len(asked)}
  ar, spec = (
    [x.token_ids for x in api.generate(model, asked, mode=mode, **how)]
    for mode in ("ar", "linear_spec")
  )
  assert len(ar) == len(asked) and ar[0] and ar == spec
  return model


def quick_step(*_):
  """Stands for `make_step`: counts steps, and nothing else."""

  def step(state, *_):
    metrics = dict.fromkeys(("loss", "grad_norm"), 1.0)
    counts = {"skipped": 0, "bad_run": 0, "supervised": 1.0, "attended": 1.0}
    return state.replace(step=state.step + 1), metrics | counts

  return step


def lines(workdir: Path) -> list[dict]:
  text = (workdir / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]
