"""The text stream, for every way in which tokens can arrive."""

import itertools

import pytest

from nemodiff_jax.errors import UserError
from nemodiff_jax.text.stream import TextStream, check_stops
from nemodiff_jax.text.tokenizer import load_tokenizer
from tests.text.test_tokenizer import write_sentencepiece, write_tekken

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
  make = {"tekken": write_tekken, "sentencepiece": write_sentencepiece}
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
  _, whole, _ = feed(Bytes(), "né".encode()[:-1])
  assert whole == "n\ufffd"


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
