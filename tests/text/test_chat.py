"""Templates of checkpoint folders, and conversations as ids."""

import json

import pytest

import nemodiff_jax as nd
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import open_checkpoint
from nemodiff_jax.text.chat import ChatTemplate, encode_chat, load_template
from nemodiff_jax.text.tokenizer import load_tokenizer
from tests.text import folders
from tests.text.test_tokenizer import FILES, write_any, write_sentencepiece

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


def test_where_a_folder_keeps_its_template(tmp_path):
  """The later a file is written here, the sooner it is taken."""
  assert load_template(tmp_path) is None
  folders.beside(tmp_path, chat_template={"chat_template": "processor"})
  assert load_template(tmp_path).render(HELLO) == "processor"
  folders.beside(
    tmp_path,
    tokenizer_config={
      "chat_template": [
        {"name": "default", "template": "{{ eos_token }}!"},
        {"name": "tool_use", "template": "tools"},
      ],
      "eos_token": {"content": "</s>"},
    },
  )
  assert load_template(tmp_path).render(HELLO) == "</s>!"
  assert load_template(tmp_path).render(HELLO, tools=[{}]) == "tools"
  (tmp_path / "additional_chat_templates").mkdir()
  more = tmp_path / "additional_chat_templates" / "tool_use.jinja"
  more.write_text("more tools")
  with pytest.raises(UserError, match="expected one named 'default'"):
    load_template(tmp_path).render(HELLO)
  (tmp_path / "chat_template.jinja").write_text("file {{ messages | tojson }}")
  template = load_template(tmp_path)
  assert template.render(HELLO) == f"file {json.dumps(HELLO)}"
  assert template.render(HELLO, tools=[]) == "more tools"
  (tmp_path / "tokenizer_config.json").write_text("{")
  with pytest.raises(UserError, match="tokenizer_config.json: expected JSON"):
    load_template(tmp_path)


def test_names_of_special_tokens_come_from_every_file(tmp_path):
  (tmp_path / "chat_template.jinja").write_text(
    "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ image_token }}"
  )
  shown = lambda: load_template(tmp_path).render(HELLO)
  assert shown() == ""
  write_sentencepiece(tmp_path)
  assert shown() == "<s></s>"
  folders.write_tekken(tmp_path)
  assert shown() == "<s></s>"
  folders.beside(tmp_path, special_tokens_map={"eos_token": "[E]"})
  assert shown() == "<s>[E]"
  config = {"pad_token": {"content": "[P]"}, "image_token": "[I]"}
  folders.beside(tmp_path, tokenizer_config=config | {"eos_token": "[C]"})
  assert shown() == "<s>[E][P][I]"
  config["added_tokens_decoder"] = {}
  folders.beside(tmp_path, tokenizer_config=config)
  assert shown() == "<s></s>[P][I]"


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ([1], "tokenizer_config.json: expected a JSON object, found .1."),
    ({"chat_template": 7}, "chat_template should be a text or a list"),
    ({"chat_template": [{"template": "x"}]}, "with 'name' and 'template'"),
    ({"chat_template": ["x"]}, "chat_template should be a text or a list"),
    ({"chat_template": {"default": 1}}, "chat_template should be a text or"),
    ({"chat_template": "x", "eos_token": {}}, "expected a token"),
    ({"chat_template": "{% for %}"}, "chat template: "),
  ],
)
def test_a_broken_template_is_told_of_when_it_is_needed(
  folder, tmp_path, config, message
):
  """Prompts of ids, and the figures of a checkpoint, do without."""
  for file in folder.iterdir():
    if file.is_file():
      (tmp_path / file.name).symlink_to(file)
  folders.beside(tmp_path, tokenizer_config=config)
  opened = open_checkpoint(str(tmp_path))
  with pytest.raises(UserError, match=message):
    encode_chat(opened.template, opened.tokenizer, HELLO)


def test_a_template_that_is_no_text_is_told_of_when_it_is_needed(tmp_path):
  (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
  with pytest.raises(UserError, match=r"chat_template.jinja: expected a text"):
    load_template(tmp_path).render(HELLO)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("start", ["", "{{ bos_token }}", "<s>"])
def test_a_chat_is_the_ids_of_its_text_and_nothing_more(tmp_path, file, start):
  """A BOS where the template writes one; control tokens by their ids."""
  control, name = write_any(tmp_path, file)
  folders.beside(tmp_path, tokenizer_config={"bos_token": "<s>"})
  source = start + name + "{{ messages[0].content }}" + name
  (tmp_path / "chat_template.jinja").write_text(source)
  made = load_tokenizer(tmp_path)
  ids = encode_chat(load_template(tmp_path), made, HELLO)
  plain = made.encode("hello")[1:]
  assert ids == [*[1] * bool(start), control, *plain, control]


def test_a_chat_needs_a_template_and_a_tokenizer(tmp_path):
  write_any(tmp_path, "tekken.json")
  made = load_tokenizer(tmp_path)
  for pair in ((None, made), (ChatTemplate("x", {}), None)):
    with pytest.raises(UserError, match="no chat template and tokenizer"):
      encode_chat(*pair, HELLO)


def test_the_embedded_template_begins_with_the_bos_it_was_trained_with():
  model = nd.load()
  ids = encode_chat(model.template, model.tokenizer, HELLO)
  typed = model.tokenizer.encode("<|user|>hello<|assistant|>")
  assert ids == typed and ids[0] == model.config.bos_id
