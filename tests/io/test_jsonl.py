"""The one reader of JSON Lines."""

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemodiff_jax.errors import UserError
from nemodiff_jax.io import jsonl

GOOD = b'{"text": "a"}\n'
# JSON as RFC 8259 has it: texts without halves of pairs, finite numbers.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
LEAVES = st.none() | st.booleans() | st.integers() | TEXT
LEAVES |= st.floats(allow_nan=False, allow_infinity=False)
OBJECTS = st.dictionaries(
  TEXT,
  st.recursive(LEAVES, lambda x: st.lists(x) | st.dictionaries(TEXT, x)),
  max_size=4,
)


def lines(content: bytes) -> list[jsonl.Line]:
  return list(jsonl.read_lines(io.BytesIO(content)))


@settings(max_examples=100, deadline=None)
@given(st.lists(OBJECTS, max_size=5), st.booleans(), st.data())
def test_objects_come_back_with_their_line_numbers(objects, ascii, data):
  """Byte order marks, CRLF, blank lines and no last line feed do no harm."""
  content, where = b"\xef\xbb\xbf" * data.draw(st.integers(0, 1)), []
  blank = st.sampled_from([b"", b"\n", b" \t\r\n"])
  for given_object in objects:
    content += data.draw(blank)
    where.append(content.count(b"\n") + 1)
    content += json.dumps(given_object, ensure_ascii=ascii).encode()
    content += data.draw(st.sampled_from([b"\n", b"\r\n", b" \n"]))
  if data.draw(st.booleans()):
    content = content.removesuffix(b"\n")
  found = lines(content)
  assert [x.error for x in found] == [None] * len(objects)
  assert [x.value for x in found] == objects
  assert [x.number for x in found] == where


@settings(max_examples=300, deadline=None)
@given(st.binary())
def test_no_bytes_raise_but_those_of_another_format(content):
  try:
    found = lines(content)
  except UserError as e:
    assert "unpack or convert" in str(e)
    return
  for line in found:
    assert isinstance(line.value, dict)
    if line.error is None:  # What is served can be written again.
      json.dumps(line.value, ensure_ascii=False).encode("utf-8")


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\r\r"])
def test_only_a_line_feed_ends_a_line(mark):
  content = f'{{"text": "a{mark}b"}}\n{{"text": "c"}}'.encode()
  found = lines(content)
  assert [x.number for x in found] == [1, 2]
  if mark == "\r\r":  # JSON wants control characters escaped.
    assert found[0].error.kind == "bad_json"
  else:
    assert found[0].value == {"text": f"a{mark}b"}


DEEP = b"[" * 100_000 + b"]" * 100_000
BAD = [
  (b'{"text": "\xff"}', "bad_utf8", "not UTF-8"),
  (b'{"text": "\xed\xa0\xbd"}', "bad_utf8", "not UTF-8"),  # CESU-8.
  (b'{"text": "cut \\ud83d"}', "bad_utf8", "half of a surrogate pair"),
  (b'{"a": [{"\\udc00": 1}]}', "bad_utf8", "half of a surrogate pair"),
  (b'{"text": "a', "bad_json", "not JSON"),
  (b'{"text": "a"} {"text": "b"}', "bad_json", "not JSON"),
  (b'{"text": ' + DEEP + b"}", "bad_json", ""),
  (b'{"text": ' + DEEP[99_899:100_101] + b"}", "bad_json", "deeper than 100"),
  (b"[7, 8]", "bad_json", "expected a JSON object, got [7, 8]"),
  (b'"a"', "bad_json", "expected a JSON object"),
  (b"null", "bad_json", "expected a JSON object, got None"),
  (b'{"text": "a", "text": "b"}', "bad_json", "'text' is there twice"),
  (b'{"a": {"b": 1, "b": 1}}', "bad_json", "'b' is there twice"),
  (b'{"n": ' + b"9" * 5000 + b"}", "bad_json", "4300 digits"),
  (b"{'text': 'a'}", "bad_json", "not JSON"),
  (b'{"text": "a"}\x00', "bad_json", "not JSON"),
  (b"\xef\xbb\xbf" * 2 + b'{"text": "a"}', "bad_json", "not JSON"),
]


@pytest.mark.parametrize(("raw", "kind", "message"), BAD)
def test_a_bad_line_is_an_error_of_its_own(raw, kind, message):
  before, bad, after = lines(GOOD + raw + b"\n" + GOOD)
  assert before.value == after.value == {"text": "a"}
  assert (bad.number, after.number) == (2, 3)
  assert bad.error.kind == kind and message in str(bad.error)


def test_depth_is_met_exactly():
  nested = lambda n: b'{"a": ' + b"[" * (n - 1) + b"]" * (n - 1) + b"}"
  assert lines(nested(100))[0].error is None
  assert lines(nested(101))[0].error.kind == "bad_json"
  (wide,) = lines(b'{"a": ' + b"[[" + b"[]," * 1000 + b"[]]]}")
  assert wide.error is None


def test_numbers_that_python_writes_are_read():
  (line,) = lines(b'{"a": NaN, "b": -Infinity, "c": 1e999, "d": 1e-999}')
  assert line.error is None and line.value["c"] == float("inf")


@pytest.mark.parametrize(
  ("head", "name"),
  [
    (b"\x1f\x8b\x08\x00", "gzip"),
    (b"BZh91AY", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstandard"),
    (b"PK\x03\x04", "zip"),
    ('{"a": 1}\n'.encode("utf-16"), "UTF-16"),
  ],
)
def test_a_file_of_another_format_is_named(head, name):
  with pytest.raises(UserError, match=f"found {name}; unpack or convert"):
    lines(head)
