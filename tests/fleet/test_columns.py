"""Jobs in Parquet: columns are fields, null is absent."""

import pytest

from nemodiff_jax.errors import UserError
from nemodiff_jax.fleet import source
from tests.fleet.conftest import (
  QUICK,
  lines_of,
  one_process,
  told,
  union,
  write,
)

REASON = "pyarrow comes with the extra [ray]"
pa = pytest.importorskip("pyarrow", reason=REASON)
pq = pytest.importorskip("pyarrow.parquet", reason=REASON)
# Where it is, the slow tests are run.
pytestmark = pytest.mark.slow


def table(path, rows, **how):
  pq.write_table(pa.Table.from_pylist(rows), path, **how)
  return path


def rows_of(folder):
  parts = sorted(folder.glob("part-*.parquet"))
  return [row for part in parts for row in pq.read_table(part).to_pylist()]


@pytest.fixture
def lines(tiny):
  return [
    {k: v for k, v in line.items() if k != "colour"}
    for line in lines_of(tiny.config, 19)
  ]


@pytest.mark.parametrize("group", [3, 7, 100])
def test_parts_hold_the_rows_of_the_file(tmp_path, lines, group):
  path = table(tmp_path / "in.parquet", lines, row_group_size=group)
  found = source.scan(str(path), 5)
  assert [p.lines for p in found.parts] == [5, 5, 5, 4]
  read = [x for part in found.parts for x in source.read(part)]
  assert [x.number for x in read] == list(range(1, 20))
  assert [x.value for x in read] == lines
  assert [p.seen for p in found.parts] == [{}, {"p1": 2}, {}, {}]


def test_rows_are_those_of_json_lines(run, folder, lines, tmp_path):
  for i in (0, 3):
    lines[i]["logprobs"] = 2
  path = write(tmp_path / "in.jsonl", lines)
  wanted = one_process(folder, path, tmp_path, *QUICK)
  columns = table(tmp_path / "in.parquet", lines)
  how = f"--prompts_file={columns}", "--rows_per_part=5", *QUICK
  assert run(*how)[0] == 3
  rows = rows_of(tmp_path / "out")
  assert told(rows) == [
    (str(name), ids, error) for name, ids, error in told(wanted)
  ]
  assert [r["line"] for r in rows] == list(range(1, 20))
  assert [r["logprobs"] and r["logprobs"]["top_ids"] for r in rows] == [
    r["logprobs"]["top_ids"] if "logprobs" in r else None for r in wanted
  ]
  code, err = run(*how)
  assert code == 3 and "2 of 19 lines could not be served" in err
  other = tmp_path / "lines"
  assert run(*how, "--output_format=jsonl", output=other)[0] == 3
  assert told(union(other)) == told(wanted)


def test_ids_keep_their_type(run, tmp_path):
  path = table(tmp_path / "in.parquet", [{"prompt_ids": [7, 8]}] * 3)
  assert run(f"--prompts_file={path}", *QUICK)[0] == 0
  assert [r["id"] for r in rows_of(tmp_path / "out")] == [1, 2, 3]


def test_messages_are_columns_too(tmp_path):
  messages = [
    {"role": "user", "content": "w9", "name": None},
    {"role": "assistant", "content": "w5", "name": "w"},
  ]
  path = table(tmp_path / "in.parquet", [{"messages": messages}])
  (part,) = source.scan(str(path), 9).parts
  (line,) = source.read(part)
  del messages[0]["name"]
  assert line.value == {"messages": messages}


def test_a_file_without_the_column_is_refused(run, tmp_path):
  def refused(rows, name="in.parquet"):
    code, err = run(f"--prompts_file={table(tmp_path / name, rows)}", *QUICK)
    assert code == 2
    return err

  err = refused([{"id": 1, "max_new_tokens": 4}])
  assert "expected a column prompt, prompt_ids or messages, found id" in err
  err = refused([{"prompt": "x", "label": 4}])
  assert "unknown column 'label'; known are id, prompt" in err
  with pytest.raises(UserError, match=r"x\.parquet is no Parquet file"):
    (tmp_path / "x.parquet").write_text("not columns")
    source.scan(str(tmp_path / "x.parquet"), 4)
