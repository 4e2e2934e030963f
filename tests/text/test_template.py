"""What templates render, against transformers; and what they may not do."""

import datetime
import json
import random
from pathlib import Path

import pytest

from nemodiff_jax.errors import UserError
from nemodiff_jax.text.template import ChatTemplate
from tests.golden.make_chat_templates import TEMPLATES, TOKENS, conversations

HELLO = [{"role": "user", "content": "hello"}]
GOLDEN = json.loads(
  (Path(__file__).parents[1] / "golden" / "chat_templates.json").read_text()
)
CALL = {"name": "f", "arguments": '{"x": 1, "y": "é"}'}
CALLS = [
  {"role": "user", "content": "q"},
  {"role": "assistant", "content": None, "tool_calls": [{"function": CALL}]},
  {"role": "tool", "content": "1"},
]
PARTS = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]


def render(source, messages, **given):
  return ChatTemplate(source, {}).render(messages, **given)


@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_as_transformers(name):
  """Texts, refusals and errors alike, over random conversations."""
  given = conversations(random.Random(0))
  template = ChatTemplate(TEMPLATES[name], TOKENS)
  for what, at, text, error in GOLDEN["rows"]:
    if what != name:
      continue
    case = given[at]
    variables = {"generation": case.get("generation", True)}
    variables |= case.get("variables", {})
    if text is None:
      with pytest.raises(UserError, match="chat template: ") as e:
        template.render(case["messages"], **variables)
      assert " ".join(error.split()) in str(e.value)
      continue
    if name == "the year":
      text = text.replace("YEAR", str(datetime.date.today().year))
    assert template.render(case["messages"], **variables) == text


@pytest.mark.parametrize(
  "source",
  [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{% include '/etc/passwd' %}",
    "{{ messages[7].content }}",
    "{{ 1 / 0 if false else raise_exception('no system turn') }}",
    "{{ 1 / 0 }}",
    "{{ range(10 ** 9) }}",
    "{{ 10.0 ** 400 }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ messages | tojson(indent='a', separators=3) }}",
    "{% if %}",
    "{% nonsense %}",
    "{{ messages | nonsense }}",
    "{% generation %}",
    "(" * 200 + "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ '%d' | format('x') }}",
    "{{ messages[0].content.format() | int(base=99) }}{{ none + 1 }}",
  ],
)
def test_whatever_a_template_raises_is_an_error_of_the_line(source):
  template = ChatTemplate(source, {})  # Not compiled before it is needed.
  with pytest.raises(UserError, match=r"^chat template: \S[^\n]*[.!?]$") as e:
    template.render(HELLO)
  assert e.value.kind == "template"


def test_named_templates():
  named = {"default": "d{{ tools }}", "tool_use": "t{{ tools }}", "rag": "r"}
  template = ChatTemplate(named, {})
  assert template.render(HELLO) == "dNone" == template.render(HELLO, tools=None)
  assert template.render(HELLO, tools=[]) == "t[]"
  del named["tool_use"]
  assert ChatTemplate(named, {}).render(HELLO, tools=[]) == "d[]"
  with pytest.raises(UserError, match=r"expected one named 'default', .*'rag'"):
    ChatTemplate({"rag": "r"}, {}).render(HELLO)


LISTS = "{% for p in m.content %}{{ p.text | upper }};{% endfor %}"
EITHER = "{{ m.content if m.content is string else '' }}"


@pytest.mark.parametrize(
  ("said", "text"),
  [
    (LISTS, "ONE;TWO;"),
    ("{{ m['content'] | map(attribute='text') | join('+') }}", "one+two"),
    ("{{ m.content }}", "one\ntwo"),
    ("{{ m.content | trim }}", "one\ntwo"),
    ("{{ '<' + m.content + '>' }}", "<one\ntwo>"),
    ("{{ m.content.split('w')[0] }}", "one\nt"),
    (EITHER, "one\ntwo"),
    ("{% if m.content is string %}s{% else %}" + LISTS + "{% endif %}",
     "ONE;TWO;"),
  ],
)  # fmt: skip
def test_parts_are_joined_by_the_template_or_by_us(said, text):
  source = "{% for m in messages %}" + said + "{% endfor %}"
  messages = [{"role": "user", "content": PARTS}]
  assert render(source, messages) == text
  assert messages[0]["content"] is PARTS


ITEMS = "{% for k, v in a | items %}{{ k }}={{ v }};{% endfor %}"


@pytest.mark.parametrize(
  ("shown", "text"),
  [
    (ITEMS, "x=1;y=é;"),
    ("{% for k, v in a.items() %}{{ k }}={{ v }};{% endfor %}", "x=1;y=é;"),
    ("{% for k in a %}{{ k }},{% endfor %}", "x,y,"),
    ("{% if a is mapping %}" + ITEMS + "{% endif %}", "x=1;y=é;"),
    ("{% if a is string %}{{ a }}{% else %}no{% endif %}", CALL["arguments"]),
    ("{{ a | tojson }}", json.dumps(CALL["arguments"], ensure_ascii=False)),
  ],
)
def test_arguments_are_parsed_for_templates_that_read_them(shown, text):
  source = (
    "{% for m in messages %}{% for c in m.tool_calls %}"
    "{% set a = c.function.arguments %}" + shown + "{% endfor %}{% endfor %}"
  )
  assert render(source, CALLS) == text
  assert CALLS[1]["tool_calls"][0]["function"] is CALL
  parsed = [{"function": {"name": "f", "arguments": {"x": 1, "y": "é"}}}]
  same = [CALLS[0], CALLS[1] | {"tool_calls": parsed}]
  if "string" not in shown and "tojson" not in shown:
    assert render(source, same) == text


def test_parts_and_arguments_in_one_conversation():
  source = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}"
    "{% else %}" + LISTS + "{% endif %}{% for c in m.tool_calls %}"
    "{% set a = c.function.arguments %}" + ITEMS + "{% endfor %}{% endfor %}"
  )
  asked = [{"role": "user", "content": PARTS}, *CALLS[1:]]
  assert render(source, asked) == "ONE;TWO;x=1;y=é;1"


def test_what_templates_see_of_a_message():
  """Null is nothing, reasoning has all its names, the rest is as it is."""
  source = "{% for m in messages %}{{ m | tojson(sort_keys=true) }}{% endfor %}"
  assert json.loads(render(source, [CALLS[1] | {"refusal": None}])) == {
    "role": "assistant", "content": "", "tool_calls": [{"function": CALL}],
  }  # fmt: skip
  said = {"role": "assistant", "content": "a", "name": "n", "reasoning": "r"}
  reasons = {"thinking": "r", "reasoning_content": "r"}
  assert json.loads(render(source, [said])) == said | reasons
  silent = {"role": "assistant", "reasoning_content": "r"}
  assert "r" in render(source, [silent])


def test_a_developer_is_the_system_where_it_is_unknown():
  messages = [{"role": "developer", "content": "d"}, *HELLO]
  source = "{% for m in messages %}{{ m.role }},{% endfor %}"
  assert render(source, messages) == "system,user,"
  assert render(source + "{# developer #}", messages) == "developer,user,"


@pytest.mark.parametrize(
  ("messages", "message"),
  [
    ([], "at least one message"),
    ("hi", "messages should be a list"),
    (None, "messages should be a list"),
    ([{"role": "user"}], "should hold a role and a content"),
    ([{"role": "user", "content": None}], "should hold a role and a content"),
    ([{"role": "user", "content": 3}], "should hold a role and a content"),
    ([{"role": "user", "content": ["x"]}], "parts of type text"),
    (
      [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
      "parts of type text.*image_url",
    ),
    ([{"role": "user", "content": [{"type": "text"}]}], "parts of type text"),
    (["hello"], "should hold a role and a content"),
    ([{"content": "x"}], "role should be one of .* got None"),
    (
      [{"role": "robot", "content": "x"}],
      "role should be one of .* got 'robot'",
    ),
    (
      [{"role": "assistant", "content": "x", "tool_calls": {"id": 1}}],
      "tool_calls should be a list of objects",
    ),
    (
      [{"role": "assistant", "content": "x", "tool_calls": ["f"]}],
      "tool_calls should be a list of objects",
    ),
  ],
)
def test_bad_messages_are_named(messages, message):
  with pytest.raises(UserError, match=message):
    render("x", messages)
