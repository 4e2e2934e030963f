"""`python -m nemodiff_jax.cli.serve` as a process, on the embedded checkpoint."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra [serve]")
http = pytest.importorskip("httpx2", reason="needs the extra [dev]")

from tests.serve import servers

ROOT = Path(__file__).parents[2]
LONG = {
  "text": "one two", "stream": True,
  "sampling_params": {
    "max_new_tokens": 1200, "ignore_eos": True, "temperature": 0,
  },
}  # fmt: skip


def start(*flags):
  """The process, and its address; SGLang's flags, with dashes."""
  compiled = ROOT / ".pytest_cache" / "compiled"
  process = subprocess.Popen(
    [
      sys.executable, "-m", "nemodiff_jax.cli.serve", "--port=0",
      "--dllm-algorithm=LinearSpec", "--served-model-name=mine", *flags,
    ],
    cwd=ROOT,
    env=os.environ | {
      "PYTHONPATH": str(ROOT),
      "JAX_COMPILATION_CACHE_DIR": str(compiled),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    },
    stderr=subprocess.PIPE,
    text=True,
  )  # fmt: skip
  line = process.stderr.readline()
  assert line.startswith("listening on http://127.0.0.1:"), line
  return process, line.split()[-1]


def is_ready(url):
  return http.get(f"{url}/health").status_code == 200


def test_it_says_when_it_is_ready_and_drains_at_a_signal():
  process, url = start("--rows=1")
  assert http.get(f"{url}/health").status_code == 503  # It is being loaded.
  early = http.post(f"{url}/generate", json={"text": "x"})
  assert early.status_code == 503 and early.headers["retry-after"]
  servers.wait_for(lambda: is_ready(url), 60)
  (model,) = http.get(f"{url}/v1/models").json()["data"]
  assert model["id"] == "mine"
  assert http.get(f"{url}/server_info").json()["mode"] == "linear_spec"
  with http.stream("POST", f"{url}/generate", json=LONG, timeout=60) as found:
    lines = found.iter_lines()
    next(lines)
    process.send_signal(signal.SIGTERM)
    servers.wait_for(lambda: not is_ready(url))
    late = http.post(f"{url}/generate", json={"text": "x"})
    assert late.status_code == 503
    rest = [x for x in lines if x.startswith("data:")]
  assert rest[-1] == "data: [DONE]"
  meta = json.loads(rest[-2][5:])["meta_info"]
  assert meta["completion_tokens"] == 1200
  assert meta["finish_reason"] == {"type": "length", "length": 1200}
  assert process.wait(30) == 0
  assert process.stderr.read().splitlines()[-1] == "ready"


def test_what_outlasts_the_drain_is_cancelled():
  process, url = start("--rows=1", "--drain-seconds=0.2")
  servers.wait_for(lambda: is_ready(url), 60)
  with http.stream("POST", f"{url}/generate", json=LONG, timeout=60) as found:
    lines = found.iter_lines()
    next(lines)
    process.send_signal(signal.SIGTERM)
    rest = [x for x in lines if x.startswith("data:")]
  assert rest[-1] == "data: [DONE]"
  assert json.loads(rest[-2][5:])["error"]["code"] == 503
  assert process.wait(30) == 0
