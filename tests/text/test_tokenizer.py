"""Tokenizer files: what is typed, what is rendered, and what is broken."""

import json
import pickle
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizers import models, processors

from nemodiff_jax.errors import UserError
from nemodiff_jax.text.special_tokens import read_named
from nemodiff_jax.text.tokenizer import load_tokenizer
from tests import helpers
from tests.golden import make_tokenizers
from tests.text import folders
from tests.text.folders import write_tekken

TEXT = "The 3 cats sat.\nNaïve café 東京 🙂"
GOLDEN = json.loads(
  (Path(__file__).parents[1] / "golden" / "tokenizers.json").read_text()
)
FILES = ("tokenizer.json", "tekken.json", "tokenizer.model")


def write_sentencepiece(folder, **changes):
  options = dict(
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
    control_symbols=["[INST]"],
    minloglevel=2,
  )
  sentencepiece.SentencePieceTrainer.train(**options | changes)
  return sentencepiece.SentencePieceProcessor(
    model_file=str(folder / "tokenizer.model")
  )


def write_any(folder, file):
  """A folder with this file; the id of a control token, and its name."""
  if file == "tokenizer.json":
    folders.byte_level(folder)
    return 4, "<|im_end|>"
  if file == "tekken.json":
    write_tekken(folder)
    return 3, "<mask>"
  return write_sentencepiece(folder).piece_to_id("[INST]"), "[INST]"


@pytest.mark.parametrize("row", GOLDEN["rows"], ids=lambda r: f"{r[0]} {r[1]}")
def test_ids_are_those_of_the_reference(tmp_path, row):
  """transformers and mistral-common, with every kind of file beside."""
  kind, beside, rendered, typed, names = row
  make_tokenizers.KINDS[kind](tmp_path)
  folders.beside(tmp_path, **make_tokenizers.BESIDE[beside])
  made, texts = load_tokenizer(tmp_path), make_tokenizers.texts()
  if rendered is None:
    assert [made.id_of(name) for name in names] == list(range(8))
  else:
    assert [made.encode_rendered(t) for t in texts] == rendered
    assert dict(read_named(tmp_path).names) == names
  # A prompt goes on: what the post-processor puts behind it is left out.
  end = -1 if kind == "byte_level" else None
  assert [made.encode(t) for t in texts] == [ids[:end] for ids in typed]


@pytest.mark.parametrize("file", FILES)
def test_control_tokens_are_typed_as_text_and_rendered_as_ids(tmp_path, file):
  control, name = write_any(tmp_path, file)
  made = load_tokenizer(tmp_path)
  made = made if file == "tekken.json" else pickle.loads(pickle.dumps(made))
  text = f"{name}cat {name}"
  ids = made.encode(text)
  assert ids[0] == 1 and control not in ids and made.decode(ids) == text
  rendered = made.encode_rendered(text)
  assert rendered[0] == rendered[-1] == control and 1 not in rendered
  assert made.decode(rendered) == "cat "
  assert made.encode_rendered(f"<s>{name}")[:2] == [1, control]


def test_parts_of_a_rendered_text_are_what_sentencepiece_makes_of_each(
  tmp_path,
):
  model = write_sentencepiece(tmp_path, add_dummy_prefix=True)
  start = [model.piece_to_id("[INST]")]
  text = "[INST]cats sat[INST] on [INST]"
  made = load_tokenizer(tmp_path)
  parts = [*start, *model.encode("cats sat"), *start, *model.encode(" on ")]
  assert made.encode_rendered(text) == [*parts, *start]
  assert made.encode("cats") == [1, *model.encode("cats")]
  folders.beside(tmp_path, tokenizer_config={"legacy": False})
  made = load_tokenizer(tmp_path)
  # Behind a line break, which is a piece of its own, no space is put.
  bare = lambda text: model.encode("\n" + text)[2:]
  assert made.encode_rendered("cats") == model.encode("cats") != bare("cats")
  parts = [*start, *bare("cats sat"), *start, *bare(" on ")]
  assert made.encode_rendered(text) == [*parts, *start]
  config = {"legacy": False, "add_prefix_space": False}
  folders.beside(tmp_path, tokenizer_config=config)
  made = load_tokenizer(tmp_path)
  assert made.encode_rendered("cats") == bare("cats")
  assert made.encode("cats") == [1, *bare("cats")]


def test_tokens_beside_a_sentencepiece_model(tmp_path):
  model = write_sentencepiece(tmp_path)
  size, mask = model.vocab_size(), model.piece_to_id("<mask>")
  token = make_tokenizers._token
  beside = {
    "added_tokens_decoder": {
      str(size): token("<think>"),
      str(size + 1): token("<|end|>", special=True, rstrip=True),
      str(size + 2): token("<thin"),  # The longest that fits is taken.
      str(mask): token("<mask>", special=True),
    },
    "eos_token": "<|end|>",
    "pad_token": "[PAD]",
  }
  folders.beside(tmp_path, tokenizer_config=beside)
  made = load_tokenizer(tmp_path)
  assert [made.id_of(x) for x in ("<think>", "<|end|>", "[PAD]")] == [
    size, size + 1, size + 3,
  ]  # fmt: skip
  ids = made.encode_rendered("a<think> b<|end|> \nc<mask>")
  cut = [size, *model.encode(" b"), size + 1, *model.encode("c"), mask]
  assert ids == [*model.encode("a"), *cut]
  assert made.decode(ids) == "a<think> bc"
  typed = made.encode("a<think><|end|><mask>")
  assert size in typed and not {size + 1, mask} & set(typed)
  assert made.decode(typed) == "a<think><|end|><mask>"
  assert made.id_of("<unk>") == 0 and made.decode([0]) == model.decode([0])


@pytest.mark.parametrize("file", FILES)
def test_offsets_say_where_the_tokens_are(tmp_path, file):
  _, name = write_any(tmp_path, file)
  made = load_tokenizer(tmp_path)
  text = f"{name} cat 🙂é{name} sat東"
  ids, offsets = made.encode_rendered_offsets(text)
  assert ids == made.encode_rendered(text) and len(ids) == len(offsets)
  assert offsets[0] == (0, len(name))
  # Every character is in a token, in order; those of one share it.
  assert all(a < b for a, b in offsets) and offsets == sorted(offsets)
  assert {i for a, b in offsets for i in range(a, b)} == set(range(len(text)))
  place = text.index("🙂")
  parts = [i for i, o in zip(ids, offsets, strict=True) if o[0] == place]
  assert made.decode(parts) == "🙂"
  assert made.encode_rendered_offsets("") == ([], [])


def test_how_a_file_was_last_used_is_no_part_of_it(tmp_path):
  folders.byte_level(tmp_path)
  path = str(tmp_path / "tokenizer.json")
  whole = load_tokenizer(tmp_path).encode(TEXT)
  saved = tokenizers.Tokenizer.from_file(path)
  saved.enable_truncation(max_length=4, direction="left")
  saved.enable_padding(pad_id=2, pad_token="</s>", length=90)
  saved.save(path)
  made = load_tokenizer(tmp_path)
  assert made.encode(TEXT) == whole == [1, *made.encode_rendered(TEXT)]


@pytest.mark.parametrize("file", FILES)
def test_ids_of_no_token_have_no_text(tmp_path, file):
  write_any(tmp_path, file)
  made = load_tokenizer(tmp_path)
  ids = made.encode_rendered("cats")
  assert made.decode([5000, ids[0], 131072, *ids[1:], 5000]) == "cats"
  assert made.decode([5000]) == "" == made.decode([])


def test_sentencepiece_bos_follows_its_config(tmp_path):
  write_sentencepiece(tmp_path)
  made = load_tokenizer(tmp_path)
  ids = made.encode(TEXT)
  assert ids[0] == 1 and made.decode(ids[1:]) == TEXT
  folders.beside(tmp_path, tokenizer_config={"add_bos_token": False})
  assert load_tokenizer(tmp_path).encode(TEXT) == ids[1:]
  assert made.id_of("<mask>") not in (None, 0)
  assert made.id_of("<nothing>") is None


@pytest.mark.parametrize(
  ("single", "front"), [("$A", []), ("<s> $A", [1]), ("$A </s>", [])]
)
def test_tokenizer_json_bos_follows_its_post_processor(tmp_path, single, front):
  folders.byte_level(tmp_path, single)
  made = load_tokenizer(tmp_path)
  assert made.encode("cat") == [*front, *made.encode_rendered("cat")]
  assert made.encode("") == front
  assert made.id_of("at") == 262 and made.id_of("<x>") is None


def test_pieces_that_are_control_tokens_are_spelled(tmp_path):
  """Some models have them among their own pieces."""
  pieces = [(p, -1.0) for p in ("<unk>", "</s>", "a", "<", "/", "s", ">")]
  made = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
  made.add_special_tokens(["<unk>", "</s>"])
  made.post_processor = processors.TemplateProcessing(
    single="$A </s>", special_tokens=[("</s>", 1)]
  )
  made.save(str(tmp_path / "tokenizer.json"))
  ours = load_tokenizer(tmp_path)
  assert ours.encode("a</s>a") == [2, 3, 4, 5, 6, 2]
  assert ours.encode_rendered("a</s>a") == [2, 1, 2]


def test_the_order_of_preference(tmp_path, tiny):
  assert load_tokenizer(tmp_path) is None
  write_sentencepiece(tmp_path)
  write_tekken(tmp_path)
  assert load_tokenizer(tmp_path).id_of("</s>") == 2
  helpers.write_tokenizer(tmp_path, tiny.config)
  assert load_tokenizer(tmp_path).encode("w7") == [1, 7]


@pytest.mark.parametrize("file", FILES)
def test_a_broken_tokenizer_is_named(tmp_path, file):
  (tmp_path / file).write_text("{ not a tokenizer")
  with pytest.raises(UserError, match=f"{file}: not a readable tokenizer"):
    load_tokenizer(tmp_path)


def test_what_a_library_raises_is_an_error_of_the_text(tmp_path, monkeypatch):
  vocab = {"a": 0}
  made = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
  made.save(str(tmp_path / "tokenizer.json"))
  ours = load_tokenizer(tmp_path)
  assert ours.encode("a") == [0]
  for call in (ours.encode, ours.encode_rendered):
    with pytest.raises(UserError, match=r"json: the text cannot be enc.*UNK"):
      call("b")
    with pytest.raises(UserError, match="half of a surrogate pair") as e:
      call("a\ud800")
    assert e.value.kind == "bad_utf8"
  with pytest.raises(UserError, match="ids cannot be decoded"):
    ours.decode([-1])

  class Panic(BaseException):
    """As pyo3's PanicException, which is no Exception."""

  def panic(*_):
    raise Panic("called `Option::unwrap()` on a `None` value")

  monkeypatch.setattr(ours._file, "encode", panic)
  with pytest.raises(UserError, match=r"cannot be encoded \(Panic: called"):
    ours.encode("a")


@pytest.mark.parametrize(
  ("beside", "message"),
  [
    ({"tokenizer_config": [1]}, r"config.json: expected a JSON object, fo.*1"),
    (
      {"tokenizer_config": {"added_tokens_decoder": [1]}},
      "added_tokens_decoder should be an object",
    ),
    (
      {"tokenizer_config": {"added_tokens_decoder": {"x": "a"}}},
      "expected a token's id, found 'x'",
    ),
    (
      {"tokenizer_config": {"added_tokens_decoder": {"7": 8}}},
      "expected a token .a text, or an object with 'content'., found 8",
    ),
    ({"tokenizer_config": {"eos_token": {}}}, "expected a token .*found {}"),
    ({"added_tokens": {"<a>": None}}, "added_tokens.json: expected a token's"),
    ({"special_tokens_map": "x"}, "special_tokens_map.json: expected a JSON"),
  ],
)
def test_broken_files_beside_are_told_of_when_a_text_is_encoded(
  tmp_path, beside, message
):
  folders.byte_level(tmp_path)
  folders.beside(tmp_path, **beside)
  made = load_tokenizer(tmp_path)
  assert made.decode([4, 261]) == " c"  # Prompts of ids do without.
  for call in (made.encode, made.encode_rendered):
    with pytest.raises(UserError, match=message):
      call("a")


@pytest.mark.parametrize("file", [*FILES, "metaspace"])
def test_pieces_are_the_bytes_of_the_text(tmp_path, file):
  """Those of a text's ids are its UTF-8; a control token has none."""
  if file == "metaspace":
    folders.metaspace(tmp_path)
    control = None
  else:
    _, control = write_any(tmp_path, file)
  tokenizer = load_tokenizer(tmp_path)
  pieces = tokenizer.pieces()
  shown = b"".join(pieces[i] for i in tokenizer.encode_rendered(TEXT))
  assert shown.removeprefix(b" ") == TEXT.encode()
  if control is not None:
    assert pieces[tokenizer.id_of(control)] is None
