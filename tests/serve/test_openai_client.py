"""OpenAI's own client against the server, over an engine that is told."""

import json

import pytest

pytest.importorskip("fastapi", reason="needs the extra [serve]")
openai = pytest.importorskip("openai", reason="needs the extra [dev]")

import pydantic

from tests.serve import fakes


def script(job):
  """What is behind the last |; '@' is the row's seed, '«' ends thinking."""
  text = fakes.ByteTokenizer().decode(job.prompt).rsplit("[assistant]", 1)[0]
  said = text.rsplit("|", 1)[-1].replace("@", str(job.row.seed))
  said = said.replace("«", "</think>")
  return [*fakes.ByteTokenizer().encode_rendered(said), fakes.EOS]


@pytest.fixture(scope="module")
def engine():
  return fakes.FakeEngine(script)


@pytest.fixture(scope="module")
def client(url):
  return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def ask(text):
  return [{"role": "user", "content": f"say|{text}"}]


def call(name="add", **arguments):
  given = json.dumps({"name": name, "arguments": arguments})
  return f"<tool_call>{given}</tool_call>"


ADD = {
  "type": "function",
  "function": {
    "name": "add",
    "parameters": {
      "type": "object",
      "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
      "required": ["a", "b"],
      "additionalProperties": False,
    },
  },
}


def test_a_reply_and_its_stream_are_the_same(client):
  ask_for = {"model": "bytes", "messages": ask("Hëllo — ☃ world."), "seed": 3}
  whole = client.chat.completions.create(**ask_for)
  (choice,) = whole.choices
  assert choice.message.content == "Hëllo — ☃ world."
  assert (choice.finish_reason, choice.message.role) == ("stop", "assistant")
  usage = whole.usage
  said = len("Hëllo — ☃ world.".encode()) + 1
  assert usage.completion_tokens == said
  assert usage.total_tokens == usage.prompt_tokens + said
  assert usage.prompt_tokens_details.cached_tokens == 3
  assert usage.nfe == said // 2 + 1 and usage.seed == 3
  assert usage.tokens_per_forward == pytest.approx(said / usage.nfe)
  assert usage.accepted_draft_tokens == said
  with client.chat.completions.stream(
    **ask_for, stream_options={"include_usage": True}
  ) as stream:
    final = stream.get_final_completion()
  assert final.choices[0].message.content == choice.message.content
  assert final.choices[0].finish_reason == "stop"
  assert final.usage.nfe == usage.nfe  # Extras inside of usage survive.


def test_choices_appear_in_order_and_end_once(client):
  """The client's own accumulator raises for any other order."""
  chunks, contents, ends = [], {}, []
  for chunk in client.chat.completions.create(
    model="", messages=ask("seed @"), n=3, seed=7, stream=True,
    stream_options={"include_usage": True},
  ):  # fmt: skip
    chunks.append(chunk)
    for choice in chunk.choices:
      delta = choice.delta.content or ""
      contents[choice.index] = contents.get(choice.index, "") + delta
      if choice.finish_reason:
        ends.append(choice.index)
  assert [c.choices[0].index for c in chunks[:3]] == [0, 1, 2]
  assert all(c.choices[0].delta.role == "assistant" for c in chunks[:3])
  assert contents == {i: f"seed {7 + i}" for i in range(3)}
  assert sorted(ends) == [0, 1, 2]
  assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 21
  assert all(c.usage is None for c in chunks[:-1])
  alone = client.chat.completions.create(model="", messages=ask("seed @"))
  assert chunks[-1].usage.prompt_tokens == alone.usage.prompt_tokens
  with client.chat.completions.stream(
    model="", messages=ask("seed @"), n=2, seed=1
  ) as stream:
    final = stream.get_final_completion()
  assert [c.message.content for c in final.choices] == ["seed 1", "seed 2"]


def test_without_a_seed_every_request_draws_one_and_tells_it(client):
  seeds = {
    client.chat.completions.create(model="", messages=ask("@")).usage.seed
    for _ in range(3)
  }
  assert len(seeds) == 3
  (seed, *_) = seeds
  again = client.chat.completions.create(model="", messages=ask("@"), seed=seed)
  assert again.choices[0].message.content == str(seed)


def test_tool_calls_whole_and_streamed(client):
  text = f"Adding. {call(a=1, b='é')}\n{call(a=-2, b='[]}')}"
  given = {"model": "", "messages": ask(text), "tools": [ADD]}
  whole = client.chat.completions.create(**given).choices[0]
  assert whole.finish_reason == "tool_calls"
  assert whole.message.content == "Adding. "
  calls = [json.loads(c.function.arguments) for c in whole.message.tool_calls]
  assert calls == [{"a": 1, "b": "é"}, {"a": -2, "b": "[]}"}]
  assert {c.function.name for c in whole.message.tool_calls} == {"add"}
  with client.chat.completions.stream(**given) as stream:
    final = stream.get_final_completion().choices[0]
  found = [json.loads(c.function.arguments) for c in final.message.tool_calls]
  assert found == calls and final.message.content == "Adding. "
  ids = [c.id for c in (*whole.message.tool_calls, *final.message.tool_calls)]
  assert len(set(ids)) == 4 and all(i.startswith("chatcmpl-tool-") for i in ids)
  one = client.chat.completions.create(**given, parallel_tool_calls=False)
  assert len(one.choices[0].message.tool_calls) == 1


def test_the_first_delta_of_a_call_names_it_and_later_ones_do_not(client):
  deltas = [
    c.choices[0].delta.tool_calls[0].model_dump(exclude_unset=True)
    for c in client.chat.completions.create(
      model="", messages=ask(call(a=12, b="x")), tools=[ADD], stream=True
    )
    if c.choices[0].delta.tool_calls
  ]
  assert set(deltas[0]) == {"index", "id", "type", "function"}
  assert deltas[0]["function"] == {"name": "add", "arguments": ""}
  assert len(deltas) > 3
  for later in deltas[1:]:
    assert set(later) == {"index", "function"}
    assert set(later["function"]) == {"arguments"}


def test_forced_calls_are_read_without_mark_up(client, engine):
  named = {"type": "function", "function": {"name": "add"}}
  one = client.chat.completions.create(
    model="", messages=ask('{"a": 1, "b": ""}'), tools=[ADD], tool_choice=named
  ).choices[0]
  assert one.finish_reason == "stop" and one.message.content is None
  assert one.message.tool_calls[0].function.arguments == '{"a": 1, "b": ""}'
  matcher = engine.jobs[-1].grammar
  assert matcher.forced()[:5] == list(b'{"a":')
  text = '[{"name": "add", "parameters": {"a": 3, "b": "]}"}}]'
  with client.chat.completions.stream(
    model="", messages=ask(text), tools=[ADD], tool_choice="required"
  ) as stream:
    many = stream.get_final_completion().choices[0]
  assert many.finish_reason == "tool_calls"
  (made,) = many.message.tool_calls
  assert json.loads(made.function.arguments) == {"a": 3, "b": "]}"}
  matcher = engine.jobs[-1].grammar
  matcher.accept(text[:-1].encode())
  assert matcher.forced() == [] and not matcher.dead  # Or another call.
  matcher.accept(b"]")
  assert matcher.may_end()
  client.chat.completions.create(
    model="", messages=ask(text), tools=[ADD], tool_choice="required",
    parallel_tool_calls=False,
  )  # fmt: skip
  single = engine.jobs[-1].grammar
  single.accept(text[:-1].encode())
  assert single.forced() == [ord("]")]
  off = client.chat.completions.create(
    model="", messages=ask(call(a=1, b="")), tools=[ADD], tool_choice="none"
  ).choices[0]
  assert off.message.tool_calls is None and "<tool_call>" in off.message.content


class Point(pydantic.BaseModel):
  x: int
  y: int | None


def test_parse_makes_the_clients_own_types(client, engine):
  done = client.chat.completions.parse(
    model="", messages=ask('{"x": 1, "y": null}'), response_format=Point
  )
  assert done.choices[0].message.parsed == Point(x=1, y=None)
  matcher = engine.jobs[-1].grammar
  matcher.accept(b'{"x": 1, "y": null}')
  assert matcher.may_end() and not matcher.dead
  with pytest.raises(openai.LengthFinishReasonError):
    client.chat.completions.parse(
      model="", messages=ask('{"x": 1, "y": null}'), response_format=Point,
      max_tokens=3,
    )  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_is_apart_by_both_names(client, stream):
  """The marks are special tokens here, which no text shows."""
  given = {
    "model": "",
    "messages": ask("a ☃ thought«the answer"),
    "extra_body": {"chat_template_kwargs": {"enable_thinking": True}},
  }
  if stream:
    with client.chat.completions.stream(**given) as s:
      deltas = [e.chunk.choices[0].delta for e in s if e.type == "chunk"]
      said = s.get_final_completion().choices[0].message
    for name in ("reasoning", "reasoning_content"):
      text = "".join(getattr(d, name, None) or "" for d in deltas)
      assert text == "a ☃ thought"
  else:
    done = client.chat.completions.create(**given)
    said = done.choices[0].message
    assert said.reasoning == said.reasoning_content == "a ☃ thought"
    thought = len("a ☃ thought".encode())
    details = done.usage.completion_tokens_details
    assert details.reasoning_tokens == thought
  assert said.content == "the answer"


def test_logprobs_of_a_chat(client):
  done = client.chat.completions.create(
    model="", messages=ask("é"), logprobs=True, top_logprobs=2
  )
  first, second, last = done.choices[0].logprobs.content
  assert (first.bytes, second.bytes, last.bytes) == ([0xC3], [0xA9], None)
  assert first.logprob == pytest.approx(-0.195)
  assert [t.token for t in first.top_logprobs] == ["�", "A"]
  assert last.token == f"token_id:{fakes.EOS}"


def test_echo_scores_the_prompt(client):
  """As lm_eval's local-completions asks: ids, no new token, null at first."""
  done = client.completions.create(
    model="", prompt=[[256, 72, 105], [256, 65]], echo=True, logprobs=1,
    max_tokens=0, temperature=0,
  )  # fmt: skip
  one, two = done.choices
  assert (one.text, two.text) == ("Hi", "A")
  assert one.logprobs.token_logprobs == [None, -0.072, -0.105]
  assert one.logprobs.tokens[1:] == ["H", "i"]
  assert one.logprobs.top_logprobs[1:] == [{"H": -0.072}, {"i": -0.105}]
  assert one.logprobs.text_offset == [0, 0, 1]
  assert done.usage.completion_tokens == 0


def test_completions_stream_what_they_say_whole(client):
  given = {"model": "", "prompt": ["x|one two", "y|three"], "max_tokens": 99}
  whole = [c.text for c in client.completions.create(**given).choices]
  assert whole == ["one two", "three"]
  texts, ends = ["", ""], []
  for chunk in client.completions.create(**given, stream=True, echo=True):
    (choice,) = chunk.choices
    texts[choice.index] += choice.text
    ends += [choice.finish_reason] * bool(choice.finish_reason)
  assert texts == ["x|one twoone two", "y|threethree"]
  assert ends == ["stop", "stop"]


def test_a_stop_text_never_shows_unless_asked(client):
  given = {"model": "", "messages": ask("one two three"), "stop": ["two"]}
  for include, text in ((False, "one "), (True, "one two")):
    extra = {"include_stop_str_in_output": include}
    done = client.chat.completions.create(**given, extra_body=extra)
    assert done.choices[0].message.content == text
    assert done.choices[0].stop_reason == "two"


def test_errors_arrive_as_the_clients_types(client, engine):
  with pytest.raises(openai.BadRequestError) as error:
    client.chat.completions.create(model="", messages=[], temperature=0.5)
  assert error.value.param == "messages" and error.value.code == "400"
  assert error.value.response.headers["x-request-id"]
  assert error.value.response.headers["x-should-retry"] == "false"
  with pytest.raises(openai.BadRequestError, match="maximum context length"):
    client.chat.completions.create(
      model="", messages=ask("x"), max_completion_tokens=2000
    )


def test_models_are_listed(client):
  (model,) = client.models.list().data
  assert (model.id, model.max_model_len) == ("bytes", 2000)
  assert client.models.retrieve("bytes").id == "bytes"
  with pytest.raises(openai.NotFoundError):
    client.models.retrieve("other")
