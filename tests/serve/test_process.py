"""The server as a process: signals, loading, its address."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra [serve]")
http = pytest.importorskip("httpx2", reason="needs the extra [dev]")

from nemodiff_jax.errors import UserError
from tests.serve import servers

HELLO = {"messages": [{"role": "user", "content": "hi"}]}
PROGRAM = """
import sys, time
from nemodiff_jax import signals
from nemodiff_jax.errors import UserError
from nemodiff_jax.serve.run import run_server
from tests.serve import fakes, servers

def load():
  if sys.argv[1] == "fail":
    raise UserError("no such checkpoint.")
  if sys.argv[1] == "slow":
    time.sleep(1000)
  return servers.served(), fakes.Slow(lambda job: [97] * 150, per_step=1)

def main():
  run_server(load, "127.0.0.1", 0, None, float(sys.argv[2]))
  return 0

signals.run(main)
"""


def start(kind, drain):
  root = Path(__file__).parent.parent.parent
  process = subprocess.Popen(
    [sys.executable, "-c", PROGRAM, kind, str(drain)],
    cwd=root,
    env=os.environ | {"PYTHONPATH": str(root)},
    stderr=subprocess.PIPE,
    text=True,
  )
  line = process.stderr.readline()
  assert line.startswith("listening on http://127.0.0.1:"), line
  return process, line.split()[-1]


def is_ready(url):
  return http.get(f"{url}/health").status_code == 200


def test_sigterm_lets_a_stream_end_and_the_process_with_0():
  process, url = start("serve", 30)
  servers.wait_for(lambda: is_ready(url))
  body = {"text": "x", "sampling_params": {"max_new_tokens": 100}}
  with http.stream(
    "POST", f"{url}/generate", json=body | {"stream": True}, timeout=60
  ) as response:
    lines = response.iter_lines()
    next(lines)
    process.send_signal(signal.SIGTERM)
    servers.wait_for(lambda: not is_ready(url))
    refused = http.post(f"{url}/generate", json=body)
    assert refused.status_code == 503 and refused.headers["retry-after"]
    rest = [x for x in lines if x.startswith("data:")]
  assert rest[-1] == "data: [DONE]"
  assert json.loads(rest[-2][5:])["meta_info"]["completion_tokens"] == 100
  assert process.wait(30) == 0


def test_sigterm_while_the_model_is_loaded_ends_at_once():
  process, url = start("slow", 30)
  assert http.get(f"{url}/health").status_code == 503
  found = http.post(f"{url}/v1/chat/completions", json=HELLO)
  assert found.status_code == 503
  process.send_signal(signal.SIGTERM)
  assert process.wait(30) == 0


def test_a_model_that_cannot_be_loaded_ends_the_server():
  process, _ = start("fail", 1)
  assert process.wait(30) != 0
  assert "no such checkpoint" in process.stderr.read()


def test_an_address_that_is_taken_is_told():
  from nemodiff_jax.serve.run import run_server

  with socket.create_server(("127.0.0.1", 0)) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(
      UserError, match=f"cannot listen on 127.0.0.1, port {port}"
    ):
      run_server(lambda: None, "127.0.0.1", port, None, 1.0)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_no_answer_waits_for_the_kernel_of_the_client(host):
  """Small parts of a stream leave at once: connections have TCP_NODELAY."""
  from nemodiff_jax.serve.run import _listen

  try:
    door = _listen(host, 0)
  except UserError:
    pytest.skip(f"this machine has no {host}")
  with door, socket.create_connection(door.getsockname()[:2]):
    connection, _ = door.accept()
    with connection:
      assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
