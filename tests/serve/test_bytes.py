"""Tools and SGLang's calls on the engine, with a vocabulary of bytes.

The model is random: what it is to say, a grammar makes it say.
"""

import json
import threading

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra [serve]")
pytest.importorskip("llguidance", reason="needs the extra [serve]")
openai = pytest.importorskip("openai", reason="needs the extra [dev]")
http = pytest.importorskip("httpx2", reason="needs the extra [dev]")

from tests import helpers, twin
from tests.serve import fakes, servers
from tests.serve.endpoint import Endpoint

ASK = [{"role": "user", "content": "Add."}]
ADD = {
  "type": "function",
  "function": {
    "name": "add",
    "parameters": {
      "type": "object",
      "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
      "required": ["a", "b"],
    },
  },
}
# Text, then calls as the template writes them; their arguments are free.
CALL = r'<tool_call>\n\{"name": "add", "arguments": \{"a": [1-9]{2}, "b": "[xy]"\}\}\n</tool_call>'
TWO = rf"Well: {CALL}\n{CALL}"


@pytest.fixture(scope="module")
def client(bytes_server):
  _, url, _ = bytes_server
  with openai.OpenAI(
    base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300
  ) as made:
    yield made


def ask(client, **given):
  extra = {
    "structured_outputs": {"regex": TWO},
    "mode": given.pop("mode", None),
  }
  return client.chat.completions.create(
    model="", messages=ASK, max_tokens=220, seed=3, tools=[ADD],
    extra_body=extra, **given,
  )  # fmt: skip


def said(message):
  calls = [(c.function.name, c.function.arguments) for c in message.tool_calls]
  return message.content, calls


def test_calls_that_the_model_writes_by_itself(client):
  """`auto`: they are read out of the text, in either mode the same."""
  whole = ask(client, tool_choice="auto").choices[0]
  content, calls = said(whole.message)
  assert content.strip() == "Well:" and whole.finish_reason == "tool_calls"
  for name, arguments in calls:
    given = json.loads(arguments)
    assert name == "add" and 11 <= given["a"] <= 99 and given["b"] in "xy"
  assert len(calls) == 2 and len({c.id for c in whole.message.tool_calls}) == 2
  assert said(ask(client, mode="ar").choices[0].message) == (content, calls)
  one = ask(client, parallel_tool_calls=False).choices[0].message
  assert said(one)[1] == calls[:1]
  none = ask(client, tool_choice="none").choices[0]
  assert not none.message.tool_calls and "<tool_call>" in none.message.content


def test_streamed_calls_add_up_to_the_whole_ones(client):
  whole = ask(client).choices[0].message
  content, calls, pieces = "", {}, 0
  for chunk in ask(client, stream=True):
    delta = chunk.choices[0].delta
    content += delta.content or ""
    for call in delta.tool_calls or ():
      pieces += 1
      if call.id:  # The first of a call.
        calls[call.index] = [call.function.name, ""]
      calls[call.index][1] += call.function.arguments or ""
  assert chunk.choices[0].finish_reason == "tool_calls"
  assert (content, [tuple(c) for c in calls.values()]) == said(whole)
  assert pieces > 4  # As they come, not each at once.


def test_select_takes_the_choice_that_the_model_finds_likeliest(bytes_server):
  """By the twin's log-probabilities, from one token before the choices."""
  _, url, _ = bytes_server
  tiny = helpers.make_tiny(
    1, vocab_size=fakes.SIZE, mask_id=fakes.MASK, eos_ids=(fakes.EOS,)
  )
  model, prompt = twin.NumpyModel(tiny.config, tiny.params), "One or "
  choices = ["two", "a dozen", "zero", "none"]
  start, means = len(prompt) - 1, []
  for choice in choices:
    ids = [fakes.BOS, *(prompt + choice).encode()]
    logits = model.causal(ids).astype(np.float64)
    logits[:, fakes.MASK] = -np.inf
    scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    means.append(
      np.mean([scores[i - 1, ids[i]] for i in range(start + 1, len(ids))])
    )
  endpoint = Endpoint(url)
  for some in (choices, choices[1:], choices[::2]):
    want = max(some, key=lambda c: means[choices.index(c)])
    assert endpoint.select(prompt, some) == want
  assert len({round(m, 3) for m in means}) == len(means)


@pytest.fixture
def permits(bytes_server, monkeypatch):
  """The engine tells of as many steps as there are of these."""
  lanes = bytes_server[2].engine.engine
  step, left = lanes.step, threading.Semaphore(3)

  def wait():
    assert left.acquire(timeout=60)
    events = step()
    if not events:
      left.release()
    return events

  monkeypatch.setattr(lanes, "step", wait)
  yield left
  left.release(10**6)


def test_a_running_name_is_taken_and_can_be_aborted(bytes_server, permits):
  _, url, service = bytes_server
  body = {
    "text": "one two", "rid": "mine", "stream": True,
    "sampling_params": {"max_new_tokens": 500, "ignore_eos": True},
  }  # fmt: skip
  with http.stream("POST", f"{url}/generate", json=body, timeout=300) as got:
    lines = (x[6:] for x in got.iter_lines() if x.startswith("data: "))
    first = json.loads(next(lines))
    assert first["meta_info"]["finish_reason"] is None
    twice = http.post(f"{url}/generate", json=body, timeout=60)
    assert twice.status_code == 400
    assert "rid 'mine' is that of a running request" in twice.text
    other = http.post(f"{url}/abort_request", json={"rid": "another"})
    assert other.status_code == 200 and service.engine.running == 1
    assert http.post(f"{url}/abort_request", json={"rid": "mine"}).is_success
    *_, last, end = lines
  assert end == "[DONE]"
  meta = json.loads(last)["meta_info"]
  assert meta["finish_reason"]["type"] == "abort"
  assert meta["completion_tokens"] < 500
  permits.release(10**6)
  servers.wait_for(lambda: not service.engine.running)
  state = lambda: http.get(f"{url}/server_info").json()["internal_states"][0]
  servers.wait_for(lambda: state()["running"] == state()["pages_used"] == 0)
  again = body | {"stream": False, "sampling_params": {"max_new_tokens": 4}}
  made = http.post(f"{url}/generate", json=again, timeout=300).json()
  assert made["meta_info"]["id"] == "mine"


def test_all_running_names_can_be_aborted_at_once(bytes_server, permits):
  _, url, service = bytes_server
  body = {
    "text": ["one", "two", "three"], "rid": ["a", "b", "c"],
    "sampling_params": {"max_new_tokens": 500, "ignore_eos": True},
  }  # fmt: skip
  found = []
  ask = lambda: found.append(
    http.post(f"{url}/generate", json=body, timeout=300)
  )
  thread = threading.Thread(target=ask)
  thread.start()
  servers.wait_for(lambda: service.engine.running == 3)
  assert http.post(f"{url}/abort_request", json={"abort_all": True}).is_success
  thread.join()
  ends = [m["meta_info"]["finish_reason"]["type"] for m in found[0].json()]
  assert ends == ["abort"] * 3
  permits.release(10**6)
  servers.wait_for(lambda: not service.engine.running)
