"""Prompts in any form, and what a row takes from the tokenizer."""

import pytest

from nemodiff_jax.decode.config import RowSettings
from nemodiff_jax.errors import UserError
from nemodiff_jax.prompts import encode_prompt, finish_row
from nemodiff_jax.text.chat import ChatTemplate
from nemodiff_jax.text.tokenizer import load_tokenizer
from tests.text import folders

NAME = "<|im_end|>"


@pytest.fixture
def tokenizer(tmp_path):
  folders.byte_level(tmp_path)
  token = {"content": "</think>", "special": False}
  config = {"added_tokens_decoder": {"263": token}}
  folders.beside(tmp_path, tokenizer_config=config)
  return load_tokenizer(tmp_path)


def test_texts_are_typed_and_messages_are_rendered(tokenizer):
  template = ChatTemplate(
    "{{ messages[0].content }}" + NAME + "{{ enable_thinking }}", {}
  )
  typed = encode_prompt(tokenizer, template, NAME)
  assert 4 not in typed and typed[0] == 1
  messages = [{"role": "user", "content": "cat"}]
  for think in (True, False):
    said = encode_prompt(tokenizer, template, messages, enable_thinking=think)
    assert said == tokenizer.encode_rendered(f"cat{NAME}{think}")
  assert encode_prompt(tokenizer, template, [3, 4]) == [3, 4]


@pytest.mark.parametrize(
  ("prompt", "kind"),
  [
    ("", "empty_prompt"),
    ("a\udc00", "bad_utf8"),
    ([{"role": "user", "content": "\ud83d"}], "bad_utf8"),
    (3, "bad_ids"),
  ],
)
def test_prompts_that_cannot_be_served(tokenizer, prompt, kind):
  template = ChatTemplate("{{ messages[0].content }}", {})
  with pytest.raises(UserError) as e:
    encode_prompt(tokenizer, template, prompt)
  assert e.value.kind == kind


def test_stop_strings_that_are_special_tokens_become_stop_ids(tokenizer):
  """They never show in a text; </think> does, and stays a text."""
  row = RowSettings(stop=[NAME, "</think>", "a", "Ġc"], stop_token_ids=[9])
  done = finish_row(tokenizer, row)
  assert done.stop == ("</think>", "a", "Ġc")
  assert done.stop_token_ids == (9, 4)
  assert finish_row(tokenizer, done) == done
  with pytest.raises(UserError, match="stop strings need a tokenizer"):
    finish_row(None, row)


def test_a_thinking_budget_takes_its_token_from_the_tokenizer(
  tokenizer, tmp_path
):
  row = RowSettings(max_thinking_tokens=3)
  assert finish_row(tokenizer, row).end_think_token_id == 263
  own = RowSettings(max_thinking_tokens=3, end_think_token_id=7)
  assert finish_row(tokenizer, own).end_think_token_id == 7
  assert finish_row(tokenizer, RowSettings()).end_think_token_id is None
  folders.byte_level(tmp_path)
  (tmp_path / "tokenizer_config.json").unlink()
  with pytest.raises(UserError, match="needs the token '</think>'"):
    finish_row(load_tokenizer(tmp_path), row)
