"""Keys, limits, and clients that go away."""

import json
import socket
import threading

import pytest

pytest.importorskip("fastapi", reason="needs the extra [serve]")
http = pytest.importorskip("httpx2", reason="needs the extra [dev]")

from nemodiff_jax.serve import http as limits
from tests.serve import fakes, servers

KEY = "a key"
HELLO = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def running():
  engine = fakes.Slow(lambda job: [97] * 1500, per_step=1, queue=4)
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
      sample.name + sample.labels.get("position", ""): sample.value
      for family in parser.text_string_to_metric_families(text)
      for sample in family.samples
    }

  old, new = read(before), read(after)
  grown = lambda name: new[name] - old.get(name, 0)
  assert grown("vllm:generation_tokens_total") == 3
  assert grown("vllm:prompt_tokens_total") == 3
  assert grown("vllm:spec_decode_num_drafts_total") == 1
  assert grown("vllm:spec_decode_num_accepted_tokens_total") == 3
  assert grown("vllm:spec_decode_num_accepted_tokens_per_pos_total2") == 1
  assert grown("vllm:prefix_cache_queries_total") == 3
  assert grown("vllm:prefix_cache_hits_total") == 3
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
