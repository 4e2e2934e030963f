"""Limits, keys, clients that go away or do not read, faults, and the end."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra [serve]")
http = pytest.importorskip("httpx2", reason="needs the extra [dev]")

from nemodiff_jax.errors import UserError
from nemodiff_jax.serve import async_engine
from nemodiff_jax.serve import http as limits
from nemodiff_jax.serve.async_engine import AsyncEngine
from nemodiff_jax.serve.contract import Job
from nemodiff_jax.serve.errors import Refusal
from nemodiff_jax.serve.metrics import Metrics
from tests.serve import fakes, servers

KEY = "a key"
HELLO = {"messages": [{"role": "user", "content": "hi"}]}


class Slow(fakes.FakeEngine):
  """A step takes a hundredth of a second."""

  def step(self):
    time.sleep(0.01)
    return super().step()


@pytest.fixture(scope="module")
def running():
  engine = Slow(lambda job: [97] * 1500, per_step=1, queue=4)
  with servers.serve(engine, KEY) as (url, service):
    headers = {"Authorization": f"Bearer {KEY}"}
    with http.Client(base_url=url, headers=headers, timeout=60) as client:
      yield engine, service, client


def test_a_key_is_asked_for_everywhere_but_for_health(running):
  *_, client = running
  for headers in ({"Authorization": "Bearer other"}, {"Authorization": ""}):
    for path in ("/v1/models", "/metrics", "/model_info"):
      found = client.get(path, headers=headers)
      assert found.status_code == 401
      assert found.json() == {"error": "Unauthorized"}
    assert client.get("/health", headers=headers).status_code == 200
  named = client.get("/v1/models", headers={"x-request-id": "abc"})
  assert named.headers["x-request-id"] == "abc"


@pytest.mark.parametrize(("body", "status", "text"), [
  (b"", 400, "not JSON"),
  (b"[]", 400, "JSON object"),
  (b'{"a": 1, "a": 2}', 400, "twice"),
  (b"\xff", 400, "UTF-8"),
  (b"[" * 10**5, 400, "JSON"),
  (b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", 400, "nested deeper"),
  (b'{"messages": "\\ud800"}', 400, "surrogate"),
  (b" " * (limits.MAX_BODY + 1), 413, "at most"),
])  # fmt: skip
def test_bodies_that_are_no_requests(running, body, status, text):
  *_, client = running
  for path in ("/v1/chat/completions", "/v1/completions", "/generate"):
    found = client.post(path, content=body)
    assert found.status_code == status
    assert text in found.json()["error"]["message"]
    assert len(found.content) < 1000


def test_paths_and_methods_that_are_not_there(running):
  *_, client = running
  assert client.get("/v2").json()["error"]["code"] == 404
  assert client.get("/v1/completions").status_code == 405


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_row(running, stream):
  engine, service, client = running
  before = len(engine.cancelled)
  with pytest.raises(http.TimeoutException):
    body = HELLO | {"stream": stream, "n": 2}
    with client.stream(
      "POST", "/v1/chat/completions", json=body, timeout=0.3
    ) as response:
      if stream:
        for _ in response.iter_lines():
          raise http.ReadTimeout("seen enough")
      response.read()
  servers.wait_for(lambda: len(engine.cancelled) == before + 2)
  assert service.engine.running == 0 and not engine.busy()


def test_a_full_queue_says_when_to_come_again(running):
  engine, _, client = running
  body = HELLO | {"n": 5}
  found = client.post("/v1/chat/completions", json=body)
  assert found.status_code == 429 and found.headers["retry-after"] == "1"
  assert found.json()["error"]["type"] == "RateLimitError"
  assert not engine.busy()  # All of a call's rows, or none.


def test_metrics_are_prometheus_text_with_the_names_that_are_scraped(running):
  parser = pytest.importorskip("prometheus_client.parser")
  *_, client = running
  body = {"text": "ab", "sampling_params": {"max_new_tokens": 3}}
  before = client.get("/metrics").text
  assert client.post("/generate", json=body).status_code == 200
  after = client.get("/metrics").text

  def read(text):
    return {
      sample.name: sample.value
      for family in parser.text_string_to_metric_families(text)
      for sample in family.samples
    }

  old, new = read(before), read(after)
  grown = lambda name: new[name] - old[name]
  assert grown("vllm:generation_tokens_total") == 3
  assert grown("vllm:prompt_tokens_total") == 3
  assert grown("vllm:spec_decode_num_drafts_total") == 1
  assert grown("vllm:spec_decode_num_accepted_tokens_total") == 3
  assert grown("vllm:time_to_first_token_seconds_count") == 1
  assert grown("vllm:inter_token_latency_seconds_count") == 2
  assert grown("vllm:e2e_request_latency_seconds_count") == 1
  for name in ("vllm:num_requests_running", "vllm:num_requests_waiting"):
    assert new[name] == 0
  assert "vllm:diffusion_num_denoising_steps_total" in new


def test_tokens_and_texts(running):
  *_, client = running
  found = client.post("/tokenize", json={"prompt": "hi"}).json()
  assert found["tokens"] == [fakes.BOS, 104, 105] and found["count"] == 3
  assert found["max_model_len"] == 2000
  bare = {"prompt": "hi", "add_special_tokens": False}
  assert client.post("/tokenize", json=bare).json()["tokens"] == [104, 105]
  chat = client.post("/tokenize", json=HELLO | {"return_token_strs": True})
  assert "".join(chat.json()["token_strs"]) == "[user]hi[assistant]"
  body = {"tokens": found["tokens"]}
  assert client.post("/detokenize", json=body).json() == {"prompt": "hi"}


def test_the_document_describes_every_body(running):
  *_, client = running
  made = client.get("/openapi.json").json()
  for path in ("/v1/chat/completions", "/v1/completions", "/generate"):
    body = made["paths"][path]["post"]["requestBody"]
    ref = body["content"]["application/json"]["schema"]["$ref"]
    kind = made["components"]["schemas"][ref.rsplit("/", 1)[1]]
    assert kind["properties"]
  text = json.dumps(made)
  for ref in set(text.split('"$ref": "')[1:]):
    assert ref.split('"')[0].rsplit("/", 1)[1] in made["components"]["schemas"]


def test_a_name_is_taken_once_and_can_be_aborted(running):
  engine, _, client = running
  body = {"text": "x", "rid": "r", "sampling_params": {"max_new_tokens": 1900}}
  found = []

  def run():
    found.append(client.post("/generate", json=body).json())

  thread = threading.Thread(target=run)
  thread.start()
  servers.wait_for(engine.busy)
  again = client.post("/generate", json=body)
  assert again.status_code == 400
  assert "running request" in again.json()["error"]["message"]
  assert client.post("/abort_request", json={"rid": "r"}).status_code == 200
  thread.join()
  assert found[0]["meta_info"]["finish_reason"]["type"] == "abort"
  servers.wait_for(lambda: not engine.busy())
  short = body | {"sampling_params": {"max_new_tokens": 1}}
  assert client.post("/generate", json=short).status_code == 200


def job(prompt=(97,)):
  from nemodiff_jax.decode.config import RowSettings

  return Job(list(prompt), RowSettings(max_new_tokens=1500))


def test_a_reader_that_falls_behind_is_cancelled_before_it_holds_memory():
  async def main():
    engine = fakes.FakeEngine(lambda job: [97] * 10**5, per_step=64)
    runner = AsyncEngine(engine, Metrics())
    asked = job()
    object.__setattr__(asked.row, "max_new_tokens", 10**5)
    stream = await runner.submit([asked])
    while stream._left:
      await asyncio.sleep(0.001)
    assert len(stream._events) == 1  # What it held is gone.
    await runner.call(lambda: None)
    assert not engine.busy()
    with pytest.raises(Refusal, match="too slowly"):
      async for _ in stream.events():
        pass
    runner.stop()

  asyncio.run(asyncio.wait_for(main(), 60))


def test_a_step_that_fails_ends_every_call_and_the_health():
  async def main():
    engine = fakes.FakeEngine(lambda job: [97] * 1000, per_step=1)
    runner = AsyncEngine(engine, Metrics())
    streams = [await runner.submit([job()]) for _ in range(2)]
    engine.fault = RuntimeError("boom")
    for stream in streams:
      with pytest.raises(Refusal, match="engine failed") as error:
        async for _ in stream.events():
          pass
      assert error.value.status == 500
    with pytest.raises(Refusal) as error:
      await runner.submit([job()])
    assert error.value.status == 503
    runner.stop()

  asyncio.run(asyncio.wait_for(main(), 60))


def test_a_job_that_is_refused_takes_its_call_with_it():
  class Picky(fakes.FakeEngine):
    def submit(self, job):
      if job.prompt == [98]:
        raise UserError("not this one.")
      return super().submit(job)

  async def main():
    engine = Picky(lambda job: [97] * 1000)
    runner = AsyncEngine(engine, Metrics())
    with pytest.raises(UserError, match="not this one"):
      await runner.submit([job(), job([98])])
    assert not engine.busy() and runner.running == 0
    runner.stop()

  asyncio.run(asyncio.wait_for(main(), 60))


def test_draining_lets_jobs_end_then_cancels():
  async def main():
    engine = Slow(lambda job: [97] * (4 if job.prompt == [98] else 1500))
    runner = AsyncEngine(engine, Metrics())
    short, long = [await runner.submit([job([i])]) for i in (98, 99)]
    await runner.drain(0.3)
    tokens = [i async for _, e in short.events() for i in e.token_ids]
    assert tokens == [97] * 4
    with pytest.raises(Refusal, match="ended"):
      async for _ in long.events():
        pass
    assert not engine.busy()
    runner.stop()

  asyncio.run(asyncio.wait_for(main(), 60))


PROGRAM = """
import sys, time
from nemodiff_jax import signals
from nemodiff_jax.errors import UserError
from nemodiff_jax.serve.run import run_server
from tests.serve import fakes, servers
from tests.serve.test_safety import Slow

def load():
  if sys.argv[1] == "fail":
    raise UserError("no such checkpoint.")
  if sys.argv[1] == "slow":
    time.sleep(1000)
  return servers.served(), Slow(lambda job: [97] * 150, per_step=1)

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


def test_a_body_that_never_ends_and_idle_connections_stop_nobody(
  running, monkeypatch
):
  *_, client = running
  monkeypatch.setattr(limits, "BODY_SECONDS", 0.3)
  host, port = client.base_url.host, client.base_url.port
  idle = [socket.create_connection((host, port)) for _ in range(200)]
  head = (
    "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
    f"Authorization: Bearer {KEY}\r\n\r\n{{"
  )
  idle[0].sendall(head.encode())
  assert client.get("/v1/models").status_code == 200
  idle[0].settimeout(20)
  assert b"408" in idle[0].recv(1000).split(b"\r\n")[0]
  for connection in idle:
    connection.close()


def test_the_bound_of_a_queue_is_a_number_of_tokens():
  assert 0 < async_engine.MAX_HELD <= 10**5
