"""Chat templates: what they render, and what they may not do."""

import json

import pytest

from nemodiff_jax.errors import UserError
from nemodiff_jax.text.chat import ChatTemplate, load_template

CHATML = (
  "{%- set enable_thinking = enable_thinking | default(false) -%}"
  "{{ bos_token }}"
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
  "{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n"
  "{{ '<think>\n' if enable_thinking else '<think></think>' }}{% endif %}"
)
HELLO = [{"role": "user", "content": "hello"}]


def test_renders_a_conversation():
  template = ChatTemplate(CHATML, {"bos_token": "<s>"})
  start = "<s><|im_start|>user\nhello<|im_end|>\n"
  assert template.render(HELLO, generation=False) == start
  turn = start + "<|im_start|>assistant\n"
  assert template.render(HELLO) == turn + "<think></think>"
  assert template.render(HELLO, enable_thinking=True) == turn + "<think>\n"


def test_template_of_the_folder(tmp_path):
  assert load_template(tmp_path) is None
  config = {
    "chat_template": [{"name": "default", "template": "{{ eos_token }}!"}],
    "eos_token": {"content": "</s>"},
  }
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
  assert load_template(tmp_path).render(HELLO) == "</s>!"
  (tmp_path / "chat_template.jinja").write_text("file {{ messages | tojson }}")
  assert load_template(tmp_path).render(HELLO) == f"file {json.dumps(HELLO)}"
  (tmp_path / "tokenizer_config.json").write_text("{")
  with pytest.raises(UserError, match="tokenizer_config.json: expected JSON"):
    load_template(tmp_path)


@pytest.mark.parametrize(
  "source",
  [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{% include '/etc/passwd' %}",
    "{{ messages[7].content }}",
    "{{ 1 / 0 if false else raise_exception('no system turn') }}",
  ],
)
def test_a_template_that_does_what_it_should_not(source):
  with pytest.raises(UserError, match="chat template: "):
    ChatTemplate(source, {}).render(HELLO)


def test_a_template_with_an_error():
  """It is told of when it is needed: prompts of ids do not need it."""
  template = ChatTemplate("{% for m in messages %}", {})
  with pytest.raises(UserError, match=r"chat template: .*endfor"):
    template.render(HELLO)


@pytest.mark.parametrize(
  ("messages", "message"),
  [
    ([], "at least one message"),
    ("hi", "messages should be a list"),
    ([{"role": "user"}], "should hold a role and a content"),
    (
      [{"role": "robot", "content": "x"}],
      "role should be one of .* got 'robot'",
    ),
  ],
)
def test_bad_messages_are_named(messages, message):
  with pytest.raises(UserError, match=message):
    ChatTemplate(CHATML, {}).render(messages)
