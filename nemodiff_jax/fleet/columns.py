"""Results as columns of Parquet: one schema, whatever a part holds."""

from collections.abc import Sequence
from typing import Any


def write(path: str, rows: Sequence[dict[str, Any]], whole: bool) -> None:
  """Writes rows, each with the fields of a line and its number.

  Args:
    path: of the file.
    rows: what is told of each line.
    whole: ids are whole numbers; else they are texts.

  Raises:
    OSError: it cannot be written.
  """
  import pyarrow as pa
  import pyarrow.parquet as pq

  schema = _schema(pa, whole)
  named = (_named(row, whole) for row in rows)
  table = pa.Table.from_pylist([*named], schema=schema)
  pq.write_table(table, path)


def errors(path: str) -> int:
  """How many rows of a file have an error."""
  import pyarrow.parquet as pq

  column = pq.read_table(path, columns=["error"])["error"]
  return len(column) - column.null_count


def _named(row: dict[str, Any], whole: bool) -> dict[str, Any]:
  name = row["id"]
  return row if whole or name is None else {**row, "id": str(name)}


def _schema(pa: Any, whole: bool) -> Any:
  integers, floats = pa.list_(pa.int32()), pa.list_(pa.float32())
  logprobs = {
    "token": floats,
    "top_ids": pa.list_(integers),
    "top": pa.list_(floats),
  }
  error = {"type": pa.string(), "message": pa.string()}
  return pa.schema(
    {
      "id": pa.int64() if whole else pa.string(),
      "line": pa.int64(),
      "text": pa.string(),
      "token_ids": integers,
      "finish_reason": pa.string(),
      "mode": pa.string(),
      "nfe": pa.int32(),
      "tokens_per_forward": pa.float64(),
      "prompt_tokens": pa.int32(),
      "completion_tokens": pa.int32(),
      "accepted": integers,
      "logprobs": pa.struct(logprobs),
      "error": pa.struct(error),
    }
  )
