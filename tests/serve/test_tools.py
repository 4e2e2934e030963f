"""Calls and reasoning out of text, however the text was cut."""

import json

import pytest

pytest.importorskip("pydantic", reason="needs the extra [serve]")

from hypothesis import given, settings
from hypothesis import strategies as st

from nemodiff_jax.serve.errors import read as read_as
from nemodiff_jax.serve.openai.choice import merged
from nemodiff_jax.serve.openai.reasoning import Reasoning
from nemodiff_jax.serve.openai.requests import read_chat
from nemodiff_jax.serve.openai.tool_stream import Content, Piece, ToolStream
from nemodiff_jax.serve.protocol.openai import ChatRequest
from tests.serve import fakes, servers

SCHEMA = {
  "properties": {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "exact": {"type": "boolean"},
    "area": {"anyOf": [{"type": "object"}, {"type": "null"}]},
  }
}
SCHEMAS = {"weather": SCHEMA, "now": None}


def read(text, cuts=(), form="xml", **more):
  """(content, [(name, arguments)]) of a text that comes in pieces."""
  stream, items = ToolStream(form, SCHEMAS, **more), []
  edges = [0, *sorted(cuts), len(text)]
  for a, b in zip(edges, edges[1:], strict=False):
    items += stream.push(text[a:b])
  items += stream.close()
  content, calls = merged(items)
  made = [(c["function"]["name"], c["function"]["arguments"]) for c in calls]
  return content, made


# The form of the Nemotron-3 template family (vLLM's parser qwen3_coder).
XML = """Let me see.
<tool_call>
<function=weather>
<parameter=city>
Köln <b>"x"</b>
</parameter>
<parameter=days>
3
</parameter>
<parameter=exact>
True
</parameter>
<parameter=area>
{"r": [1, 2]}
</parameter>
</function>
</tool_call>
<tool_call>
<function=now>
</function>
</tool_call>"""
XML_CALLS = [
  ("weather", {
    "city": 'Köln <b>"x"</b>', "days": 3, "exact": True, "area": {"r": [1, 2]},
  }),
  ("now", {}),
]  # fmt: skip
# Hermes' form.
JSON = (
  'Hm <tool_call>\n{"name": "weather", "arguments": {"city": "a}\\"]", "days":'
  ' 2}}\n</tool_call> <tool_call>{"arguments": {"x": 1}, "name": "now"}'
  "</tool_call>"
)
JSON_CALLS = [
  ("weather", {"city": 'a}"]', "days": 2}), ("now", {"x": 1}),
]  # fmt: skip
LIST = '[{"name": "weather", "parameters": {"city": "],}"}}, {"name": "now", "parameters": {}}]'
LIST_CALLS = [("weather", {"city": "],}"}), ("now", {})]
CASES = {
  "xml": (XML, "Let me see.\n", XML_CALLS),
  "json": (JSON, "Hm ", JSON_CALLS),
  "required": (LIST, "", LIST_CALLS),
}


@pytest.mark.parametrize("form", CASES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_calls_are_the_same_however_the_text_is_cut(form, data):
  text, content, calls = CASES[form]
  places = st.integers(0, len(text))
  cuts = data.draw(st.lists(places, max_size=12))
  for chosen in (cuts, range(1, len(text))):
    said, made = read(text, chosen, form)
    assert said == content
    assert [(name, json.loads(given)) for name, given in made] == calls


def test_either_form_is_read_whatever_the_template_writes():
  assert [n for n, _ in read(JSON, form="xml")[1]] == ["weather", "now"]
  assert [n for n, _ in read(XML, form="json")[1]] == ["weather", "now"]


@pytest.mark.parametrize("text", [
  "no calls here", "a < b and <tool", "<tool_call> of nature",
  "<tool_call>{not json}</tool_call> after", "<tool_call>", "  ",
])  # fmt: skip
def test_what_is_no_call_stays_as_it_was(text):
  for cuts in ((), range(1, len(text))):
    assert read(text, cuts) == (text, [])


def test_arguments_come_before_the_call_is_complete():
  stream = ToolStream("json", {})
  start = '<tool_call>{"name": "f", "arguments": {"text": "abc'
  items = stream.push(start)
  assert isinstance(items[0], Piece) and items[0].name == "f"
  assert "".join(i.arguments for i in items) == '{"text": "abc'


def test_a_call_cut_off_keeps_what_it_has():
  content, calls = read('x<tool_call>{"name": "f", "arguments": {"a": 1')
  assert (content, calls) == ("x", [("f", '{"a": 1')])


def test_only_the_first_call_where_they_may_not_be_parallel():
  assert [n for n, _ in read(XML, most=1)[1]] == ["weather"]


def test_the_named_function_takes_the_whole_text():
  text = '{"city": "x"}'
  content, calls = read(text, range(1, 13), form="named", named="weather")
  assert (content, calls) == ("", [("weather", text)])


STRICT = {
  "type": "object",
  "properties": {
    "city": {"type": "string"},
    "days": {"$ref": "#/$defs/days"},
    "unit": {"type": "string", "enum": ["C", "F"]},
  },
  "$defs": {"days": {"type": "integer"}},
  "required": ["city", "days"],
  "additionalProperties": False,
}
NOW = '<tool_call>\n{"name": "now", "arguments": {"z": 1}}\n</tool_call>'
DAYS = '<tool_call>\n{"name": "f", "arguments": {"city": "a", "days": '
CITY = "<tool_call>\n<function=f>\n<parameter=city>\n"
KEPT = [
  ("json", "a <tool of ours", True),
  ("json", DAYS + "3}}\n</tool_call> bye", True),
  ("json", DAYS + '"3"', False),
  ("json", f"x{NOW} and {NOW}", True),
  ("json", '<tool_call>\n{"name": "other', False),
  ("xml", "no call", True),
  ("xml", CITY + "Köln </p>\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
   "</function>\n</tool_call> ok", True),
  ("xml", CITY + "K\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
   "<parameter=unit>\nF\n</parameter>\n</function>\n</tool_call>", True),
  ("xml", CITY + "K\n</parameter>\n<parameter=unit>", False),
  ("xml", "<tool_call>\n<function=f>\n</function>", False),
  ("xml", "<tool_call>\n<function=now>\n</function>\n</tool_call>", True),
  ("xml", "<tool_call>\n<function=other>", False),
]  # fmt: skip


@pytest.mark.parametrize(("form", "text", "kept"), KEPT)
def test_calls_of_strict_tools_keep_to_their_schemas(form, text, kept):
  """What the grammar of a request lets through, and that it is read again."""
  template = servers.ChatTemplate(f"<tool_call> {XML * (form == 'xml')}", {})
  function = {"name": "f", "parameters": STRICT, "strict": True}
  tools = [{"type": "function", "function": function}]
  tools += [{"type": "function", "function": {"name": "now"}}]
  messages = [{"role": "user", "content": "x"}]
  request = read_as(ChatRequest, {"messages": messages, "tools": tools})
  (job,) = read_chat(servers.served(template=template), request).jobs
  job.grammar.accept(text.encode())
  assert job.grammar.dead is not kept
  if kept:
    assert job.grammar.may_end()
    names = [n for n, _ in read(text, form=form)[1]]
    assert len(names) == text.count("</tool_call>")


class Plain(fakes.ByteTokenizer):
  """A vocabulary where the marks of thinking are ordinary text."""

  def id_of(self, token):
    return None


def think(tokenizer, text, opened, cuts):
  stream, parts = Reasoning(tokenizer, opened), []
  data = tokenizer.encode_rendered(text)
  edges = [0, *sorted(c for c in cuts if c < len(data)), len(data)]
  for a, b in zip(edges, edges[1:], strict=False):
    ids = data[a:b]
    shown = (
      text if isinstance(tokenizer, Plain) and (a, b) == (0, len(data)) else
      bytes(i for i in ids if i < 256).decode("latin-1")
    )  # fmt: skip
    parts.append(stream.push(shown, ids))
  parts.append(stream.close())
  return "".join(r for r, _ in parts), "".join(a for _, a in parts)


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, 40), max_size=10))
def test_reasoning_ends_at_its_mark(cuts):
  text = "why not</think>an answer"
  for tokenizer in (fakes.ByteTokenizer(), Plain()):
    if isinstance(tokenizer, Plain):
      tokenizer.encode_rendered = lambda t: list(t.encode())
    assert think(tokenizer, text, True, cuts) == ("why not", "an answer")
    opening = think(tokenizer, "<think>" + text, False, cuts)
    assert opening == ("why not", "an answer")
    plain = think(tokenizer, "an answer", False, cuts)
    assert plain == ("", "an answer")


def test_content_items_are_never_empty():
  stream = ToolStream("xml", SCHEMAS)
  items = [i for c in XML for i in stream.push(c)] + stream.close()
  assert all(i.text for i in items if isinstance(i, Content))
