"""What llama.cpp's tests of a server ask about the protocol, asked again here.

The questions alone are theirs (tools/server/tests: chat completions, completions,
tokens; serving.md 3.1 of the sources): what its own model says, its own routes and
fields (timings, slots, infill) and CORS are not asked. Keys and clients that go
away are asked in test_safety.py and test_real.py.
"""

import json

import pytest

pytest.importorskip("fastapi", reason="needs the extra [serve]")
pytest.importorskip("llguidance", reason="needs the extra [serve]")
http = pytest.importorskip("httpx2", reason="needs the extra [dev]")

from tests.serve import fakes

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ASK = [
  {"role": "system", "content": "Book"}, {"role": "user", "content": "Hey"},
]  # fmt: skip


@pytest.fixture(scope="module")
def engine():
  """Says the last bytes of its prompt."""
  return fakes.FakeEngine(lambda job: [*job.prompt[-9:], fakes.EOS])


@pytest.fixture
def post(url):
  return lambda path, **body: http.post(url + path, json=body, timeout=60)


def stream(url, path, **body):
  with http.stream("POST", url + path, json=body | {"stream": True}) as got:
    lines = [x[6:] for x in got.iter_lines() if x.startswith("data: ")]
  assert lines[-1] == "[DONE]"
  return [json.loads(x) for x in lines[:-1]]


def test_a_stream_has_one_name_one_role_and_the_usage_of_the_whole(url, post):
  given = {"messages": ASK, "max_tokens": 8, "seed": 1}
  whole = post(CHAT, **given).json()
  assert "cmpl" in whole["id"]
  assert whole["usage"]["completion_tokens"] == 8
  message = whole["choices"][0]["message"]
  assert message["role"] == "assistant"
  *chunks, usage = stream(
    url, CHAT, **given, stream_options={"include_usage": True}
  )
  assert len({c["id"] for c in [*chunks, usage]}) == 1
  assert usage["choices"] == [] and usage["usage"] == whole["usage"]
  deltas = [c["choices"][0]["delta"] for c in chunks]
  assert deltas[0]["role"] == "assistant" and not deltas[0]["content"]
  assert not any("role" in d for d in deltas[1:])
  assert "".join(d.get("content", "") for d in deltas) == message["content"]
  ends = [c["choices"][0]["finish_reason"] for c in chunks]
  assert ends == [None] * (len(ends) - 1) + ["length"]
  assert "content" not in deltas[-1]
  assert not any("usage" in c for c in chunks)


def test_texts_in_parts_are_one_text(post):
  parts = [{"type": "text", "text": "He"}, {"type": "text", "text": "y"}]
  asks = [[ASK[0], {"role": "user", "content": c}] for c in (parts, "He\ny")]
  counts = [
    post(CHAT, messages=m).json()["usage"]["prompt_tokens"] for m in asks
  ]
  assert counts[0] == counts[1]


def test_logprobs_spell_the_text_whole_and_streamed(url, post):
  given = {
    "messages": ASK, "max_tokens": 5, "logprobs": True, "top_logprobs": 3,
  }  # fmt: skip
  choice = post(CHAT, **given).json()["choices"][0]
  tokens = choice["logprobs"]["content"]
  assert "".join(t["token"] for t in tokens) == choice["message"]["content"]
  for token in tokens:
    assert token["logprob"] <= 0 and token["bytes"] is not None
    assert len(token["top_logprobs"]) == 3
  chunks = [c["choices"][0] for c in stream(url, CHAT, **given)]
  pieces = [c.get("logprobs") for c in chunks]
  streamed = [t for p in pieces if p for t in p["content"]]
  assert streamed == tokens


@pytest.mark.parametrize("messages", [
  None, "string", [], [123], [{}], [{"role": 123}], [{"content": "hello"}],
  [{"role": "system", "content": 123}], [*ASK, {}],
])  # fmt: skip
def test_messages_that_are_none_are_a_400(post, messages):
  found = post(CHAT, messages=messages)
  assert found.status_code == 400
  assert found.json()["error"]["param"] == "messages"


FORMS = [
  ({"type": "text"}, None),
  ({"type": "json_object", "schema": {"const": "42"}}, b'"42"'),
  ({"type": "json_schema", "json_schema": {"schema": {"const": "f"}}}, b'"f"'),
  ({"type": "json_object"}, b"{"),
]
BAD_FORMS = [
  {"type": "sound"}, {"type": []}, {}, {"type": "json_object", "schema": 123},
  {"type": "json_object", "schema": {"type": 123}},
  {"type": "json_object", "schema": {"type": "hiccup"}},
  {"type": "json_schema"}, {"type": "json_schema", "json_schema": {}},
  {"type": "text", "schema": {}}, {"type": "json_schema", "schema": {}},
]  # fmt: skip


@pytest.mark.parametrize(("form", "begins"), FORMS)
def test_a_response_format_becomes_a_grammar(post, engine, form, begins):
  assert post(CHAT, messages=ASK, response_format=form).is_success
  grammar = engine.jobs[-1].grammar
  if begins is None:
    assert grammar is None
  else:
    assert bytes(grammar.forced()).startswith(begins)


@pytest.mark.parametrize("form", BAD_FORMS)
def test_a_response_format_that_is_none_is_a_400(post, form):
  found = post(CHAT, messages=ASK, response_format=form)
  assert found.status_code == 400
  assert found.json()["error"]["param"] == "response_format"


def test_prompts_in_any_form_are_answered_in_their_order(post):
  for prompt, texts in (
    ("abc", ["abc"]), (["abc", "de"], ["abc", "de"]), ([97, 98], ["ab"]),
    ([[97, 98], [99]], ["ab", "c"]),
  ):  # fmt: skip
    made = post(COMPLETIONS, prompt=prompt).json()
    assert [c["text"] for c in made["choices"]] == texts
    assert [c["index"] for c in made["choices"]] == [*range(len(texts))]
  for prompt in ([], [[]], [""], "", [1.5], [None], ["a", 7]):
    assert post(COMPLETIONS, prompt=prompt).status_code == 400, prompt


def test_a_prompt_beyond_the_window_says_how_long_it_is(post):
  found = post(COMPLETIONS, prompt="a" * 3000)
  message = found.json()["error"]["message"]
  assert found.status_code == 400
  assert (
    "maximum context length is 2000 tokens" in message and "3001" in message
  )


def test_tokens_go_back_to_their_text(post):
  text = "What a day it has been, ☃!"
  for special in (True, False):
    made = post("/tokenize", prompt=text, add_special_tokens=special).json()
    assert made["count"] == len(made["tokens"])
    assert (made["tokens"][0] == fakes.BOS) == special
    back = post("/detokenize", tokens=made["tokens"])
    assert back.json()["prompt"] == text
