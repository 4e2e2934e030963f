"""Parts hold every line once, by the number and name it has in the whole."""

import gzip
import os

import pytest

from nemodiff_jax.errors import UserError
from nemodiff_jax.fleet import source
from nemodiff_jax.io.jsonl import read_lines
from tests.fleet.conftest import write

ODD = (
  b'\xef\xbb\xbf{"id": "a", "prompt": "x"}\r\n'
  b"\n"
  b'{"prompt": "no id\xe2\x80\xa8"}\n'
  b"{bad\n"
  b'  \t\n{"id": 2, "prompt": "y"}\n'
  b'{"id": "a", "prompt": "twice"}\n'
  b"\xff\n"
  b'{"id": true, "prompt": "z"}\n'
  b'{"id": "a", "prompt": "no line end"}'
)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_parts_hold_the_lines_of_the_file(tmp_path, size):
  path = tmp_path / "in.jsonl"
  path.write_bytes(ODD)
  with path.open("rb") as file:
    wanted = [(x.number, x.value, str(x.error)) for x in read_lines(file)]
  parts = source.scan(str(path), size).parts
  found = [list(source.read(part)) for part in parts]
  assert [len(lines) for lines in found] == [part.lines for part in parts]
  assert all(0 < len(lines) <= size for lines in found)
  assert [
    (x.number, x.value, str(x.error)) for lines in found for x in lines
  ] == wanted
  assert [part.number for part in parts] == list(range(len(parts)))


def test_an_id_of_an_earlier_part_is_known_in_a_later_one(tmp_path):
  path = tmp_path / "in.jsonl"
  path.write_bytes(ODD)
  seen = [part.seen for part in source.scan(str(path), 2).parts]
  assert seen == [{}, {}, {"a": 1}, {"a": 1}]
  (whole,) = source.scan(str(path), 100).parts
  assert whole.seen == {}  # The reader sees them all.
  write(path, [{"id": 3}, {"prompt": "x"}, {"prompt": "y"}])
  assert [p.seen for p in source.scan(str(path), 1).parts] == [{}, {}, {3: 1}]


def test_files_of_a_folder_are_one_input(tmp_path):
  for name in ("b", "a", ".hidden", "_manifest"):
    write(tmp_path / f"{name}.jsonl", [{"prompt": name}, {"prompt": name}])
  (tmp_path / "c.jsonl").touch()
  found = source.scan(str(tmp_path), 10)
  lines = [x for part in found.parts for x in source.read(part)]
  assert [(x.number, x.value["prompt"]) for x in lines] == [
    (1, "a"), (2, "a"), (3, "b"), (4, "b"),
  ]  # fmt: skip
  assert found.lines == 4
  assert [os.path.basename(p.file) for p in found.parts] == [
    "a.jsonl",
    "b.jsonl",
  ]


def test_what_decides_the_answers_is_in_the_digest(tmp_path):
  path = tmp_path / "in.jsonl"
  digests = set()
  for text in ("a", "b"):
    write(path, [{"prompt": text}])
    digests |= {source.scan(str(path), 4).digest}
  assert len(digests) == 2
  moved = tmp_path / "moved.jsonl"
  path.rename(moved)
  assert source.scan(str(moved), 4).digest in digests


def test_kinds_of_ids_and_lines_are_known(tmp_path):
  path = tmp_path / "in.jsonl"
  for ids, whole in (([1, 2], True), ([1, "a"], False), ([2**63], False)):
    write(path, [{"id": i} for i in ids])
    assert source.scan(str(path), 1).whole is whole
  assert source.scan(str(path), 1).requests is None
  write(path, [{"id": 1}, {"custom_id": "a", "body": {}}])
  assert source.scan(str(path), 1).requests == 2


def test_what_cannot_be_read_is_refused(tmp_path):
  def refused(path):
    with pytest.raises(UserError) as e:
      source.scan(str(path), 4)
    return str(e.value)

  assert "No such file" in refused(tmp_path / "none.jsonl")
  assert "machines read it themselves" in refused("-")
  assert "found no file" in refused(tmp_path)
  packed = tmp_path / "in.jsonl.gz"
  packed.write_bytes(gzip.compress(b"{}\n"))
  assert "found gzip" in refused(packed)
  (tmp_path / "rows.parquet").touch()
  assert "found .gz, .parquet" in refused(tmp_path)


def test_a_file_that_shrinks_is_noticed(tmp_path):
  path = write(tmp_path / "in.jsonl", [{"prompt": "x"}] * 4)
  *_, last = source.scan(str(path), 2).parts
  path.write_bytes(path.read_bytes()[:-5])
  with pytest.raises(UserError, match="has become shorter"):
    list(source.read(last))
