"""The text stream, for every way in which tokens can arrive."""

import itertools
import random

import pytest

from nemodiff_jax.errors import UserError
from nemodiff_jax.text.stream import TextStream, check_stops
from nemodiff_jax.text.tokenizer import load_tokenizer
from tests.text import folders
from tests.text.test_tokenizer import write_sentencepiece

TEXT = "café 🙂 stop here. STOP 東京\nend"


class Bytes:
  """A tokenizer of single bytes: every character is split."""

  def encode(self, text):
    return list(text.encode())

  def decode(self, ids):
    return bytes(ids).decode("utf-8", errors="replace")

  def id_of(self, token):
    return None


@pytest.fixture(params=["bytes", "tekken", "sentencepiece"])
def tokenizer(request, tmp_path):
  if request.param == "bytes":
    return Bytes()
  make = {"tekken": folders.write_tekken, "sentencepiece": write_sentencepiece}
  make[request.param](tmp_path)
  return load_tokenizer(tmp_path)


def feed(tokenizer, ids, stops=()):
  """Texts after every token, and the whole at the end."""
  stream, seen = TextStream(tokenizer, stops), []
  for count, token in enumerate(ids, 1):
    if stream.push(token):
      return [*seen, stream.text], stream.close(), count
    seen.append(stream.text)
  return seen, stream.close(), len(ids)


def test_stream_matches_whole(tokenizer):
  ids = tokenizer.encode(TEXT)
  seen, whole, _ = feed(tokenizer, ids)
  assert whole == tokenizer.decode(ids) == TEXT
  for before, after in itertools.pairwise([*seen, whole]):
    assert after.startswith(before)
  assert not any("\ufffd" in text for text in seen)


@pytest.mark.parametrize(
  "stop", [s for i in range(len(TEXT)) for s in [TEXT[i : i + 4]]]
)
def test_stop_string_never_leaks(tokenizer, stop):
  """Whatever part of the text is the stop string, nothing of it is shown."""
  want = TEXT[: TEXT.index(stop)]
  ids = tokenizer.encode(TEXT)
  seen, whole, used = feed(tokenizer, ids, (stop, "never in it"))
  assert whole == want
  assert all(want.startswith(text) for text in seen)
  # The token that completes the stop string is the last one taken.
  assert stop in tokenizer.decode(ids[:used])
  assert stop not in tokenizer.decode(ids[: used - 1])


def test_a_beginning_of_a_stop_string_is_let_go():
  seen, whole, _ = feed(Bytes(), b"ab aab aaab", ("aaaa", "abc"))
  assert whole == "ab aab aaab"
  assert seen[1] == "" and seen[2] == "ab "


def test_the_earliest_stop_string_counts():
  _, whole, _ = feed(Bytes(), b"one two three", ("three", "wo"))
  assert whole == "one t"


def test_text_that_ends_inside_a_character():
  stream = TextStream(Bytes())
  for token in "né".encode()[:-1]:
    stream.push(token)
  assert stream.text == "n"
  assert [stream.close() for _ in range(3)] == ["n\ufffd"] * 3
  assert stream.text == "n\ufffd"


def prefixed(folder):
  """A space before each text, bytes, and added tokens that show and do not."""
  write_sentencepiece(folder, add_dummy_prefix=True)
  token = {"content": "<think>", "special": False}
  tokens = {"310": token, "311": {"content": "<|end|>", "special": True}}
  folders.beside(folder, tokenizer_config={"added_tokens_decoder": tokens})


KINDS = {
  "byte_level": folders.byte_level,
  "metaspace": folders.metaspace,
  "word_piece": folders.word_piece,
  "tekken": folders.write_tekken,
  "sentencepiece": write_sentencepiece,
  "sentencepiece, prefixed": prefixed,
}


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_add_up_to_what_the_whole_decodes_to(tmp_path, kind):
  """Any ids, cut anywhere: inside characters, after special tokens."""
  KINDS[kind](tmp_path)
  made, draw = load_tokenizer(tmp_path), random.Random(0)
  for case in range(300):
    some = draw.sample(range(320), 5) if case % 2 else range(320)
    ids = draw.choices(some, k=12)
    stream = TextStream(made)
    seen = [stream.text for i in ids if not stream.push(i)]
    whole = made.decode(ids)
    assert stream.close() == whole, ids
    assert all(whole.startswith(text) for text in seen), ids
    for cut in range(12):
      short = TextStream(made)
      for i in ids[:cut]:
        short.push(i)
      assert short.close() == made.decode(ids[:cut]), ids[:cut]


@pytest.mark.parametrize("kind", ["metaspace", "sentencepiece, prefixed"])
def test_the_space_after_a_special_token_stays(tmp_path, kind):
  KINDS[kind](tmp_path)
  made = load_tokenizer(tmp_path)
  words = {"metaspace": ("Yes", "no")}.get(kind, ("cats", "sat"))
  first, second = (made.encode(w)[1:] for w in words)
  ids = [*first, made.id_of("</s>"), *second]
  stop = " ".join(words)
  assert feed(made, ids)[1] == stop == made.decode(ids)
  assert feed(made, [*ids, *second], (stop,))[1:] == ("", len(ids))


def test_a_stop_string_ends_before_bytes_that_may_yet_change(tmp_path):
  """Where a byte that is no character breaks the whole run before it."""
  folders.metaspace(tmp_path)
  made = load_tokenizer(tmp_path)
  ids = made.encode_rendered("a🙂東🙂")
  last = made.id_of("<0xFF>")
  assert made.decode([*ids, last]).count("\ufffd") > 8
  assert feed(made, [*ids, last])[1] == made.decode([*ids, last])
  seen, text, used = feed(made, ids, ("東",))
  assert text == "a🙂" and "東" in made.decode(ids[:used])
  assert used == len(ids) - len("🙂".encode())
  assert not any("\ufffd" in x for x in seen)


@pytest.mark.parametrize(
  ("stops", "message"),
  [
    ([""], "no empty text"),
    (["a"] * 17, "at most 16 texts, got 17"),
    ([3], "a text or a list of texts"),
  ],
)
def test_bad_stops_are_named(stops, message):
  with pytest.raises(UserError, match=message):
    check_stops(stops)


def test_one_stop_may_be_a_text():
  assert check_stops("abc") == ("abc",) and check_stops([]) == ()
