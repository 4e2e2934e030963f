"""The three tokenizer files, and what happens to broken ones."""

import base64
import json

import pytest
import sentencepiece

from nemodiff_jax.errors import UserError
from nemodiff_jax.text.tokenizer import load_tokenizer
from tests import helpers

TEXT = "The 3 cats sat.\nNaïve café 東京 🙂"


def write_tekken(folder):
  """A tekken.json with single bytes and a few merges."""
  tokens = [bytes([i]) for i in range(256)] + [b" s", b"at", b" sat", b"ca"]
  names = ["<unk>", "<s>", "</s>", "<mask>"]
  data = {
    "config": {
      "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+",
      "num_vocab_tokens": len(tokens),
      "default_vocab_size": len(tokens) + 8,
      "default_num_special_tokens": 8,
      "version": "v7",
    },
    "vocab": [
      {
        "rank": i,
        "token_bytes": base64.b64encode(t).decode(),
        "token_str": None,
      }
      for i, t in enumerate(tokens)
    ],
    "special_tokens": [
      {"rank": i, "token_str": n, "is_control": True}
      for i, n in enumerate(names)
    ],
  }
  (folder / "tekken.json").write_text(json.dumps(data))


def write_sentencepiece(folder):
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([TEXT, "cats sat on cats", "a b c d e f"] * 20),
    model_prefix=str(folder / "tokenizer"),
    vocab_size=300,
    hard_vocab_limit=False,
    byte_fallback=True,
    character_coverage=1.0,
    normalization_rule_name="identity",
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    user_defined_symbols=["\n", "<mask>"],
    minloglevel=2,
  )


def test_tekken_round_trip_with_bos(tmp_path):
  write_tekken(tmp_path)
  tokenizer = load_tokenizer(tmp_path)
  ids = tokenizer.encode(TEXT)
  assert ids[0] == tokenizer.id_of("<s>") == 1
  assert 8 + 258 in tokenizer.encode("cat sat")  # " sat" is one token.
  assert tokenizer.decode(ids) == TEXT
  assert tokenizer.decode([1, 3, *ids, 2]) == TEXT  # Specials are left out.
  assert tokenizer.id_of("<mask>") == 3 and tokenizer.id_of("<x>") is None
  assert 3 not in tokenizer.encode("a <mask> typed by a user")


def test_sentencepiece_bos_follows_its_config(tmp_path):
  write_sentencepiece(tmp_path)
  tokenizer = load_tokenizer(tmp_path)
  ids = tokenizer.encode(TEXT)
  assert ids[0] == 1 and tokenizer.decode(ids[1:]) == TEXT
  config = tmp_path / "tokenizer_config.json"
  config.write_text('{"add_bos_token": false}')
  assert load_tokenizer(tmp_path).encode(TEXT) == ids[1:]
  assert tokenizer.id_of("<mask>") not in (None, 0)
  assert tokenizer.id_of("<nothing>") is None


def test_tokenizer_json_bos_follows_its_post_processor(tmp_path, tiny):
  helpers.write_tokenizer(tmp_path, tiny.config)
  tokenizer = load_tokenizer(tmp_path)
  assert tokenizer.encode("w7 w9") == [1, 7, 9]
  assert tokenizer.decode([7, 9]) == "w7 w9"
  assert tokenizer.id_of("w5") == 5 and tokenizer.id_of("<x>") is None


def test_tokenizer_json_goes_first(tmp_path, tiny):
  write_tekken(tmp_path)
  helpers.write_tokenizer(tmp_path, tiny.config)
  assert load_tokenizer(tmp_path).encode("w7") == [1, 7]


def test_no_tokenizer_is_none(tmp_path):
  assert load_tokenizer(tmp_path) is None


@pytest.mark.parametrize(
  "file", ["tokenizer.json", "tekken.json", "tokenizer.model"]
)
def test_a_broken_tokenizer_is_named(tmp_path, file):
  (tmp_path / file).write_text("{ not a tokenizer")
  with pytest.raises(UserError, match=f"{file}: not a readable tokenizer"):
    load_tokenizer(tmp_path)
