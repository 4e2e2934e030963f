"""The data pipeline: sources -> packed rows -> arrays of the global batch.

The order depends on the seed alone. A run's data is cut into `data.shards`
streams, each shuffled, packed and batched on its own; a process reads some of
them. So the batches are the same on any number of processes that divides the
shards, and the pipeline's state is saved with the checkpoint.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import ml_collections
import numpy as np
from grain import experimental
from jax.sharding import Mesh, NamedSharding

from nemodiff_jax.errors import UserError
from nemodiff_jax.nn.config import ModelConfig
from train import mesh as meshes
from train.corruption import Rows
from train.documents import Document, encode_record
from train.sources import Arithmetic, Lines, Shards
from train.start import Start

Source = Lines | Arithmetic | Shards


def open_source(
  data: ml_collections.ConfigDict, model: ModelConfig, seed: int
) -> Source:
  """The source that config.data names.

  Raises:
    UserError: files that are not there.
  """
  if data.source == "arithmetic":
    return Arithmetic(seed)
  paths = [Path(p) for p in data.source.split(",")]
  if paths[0].is_dir():
    return Shards(paths[0], model.vocab_size)
  return Lines(paths, data.on_error)


def make_dataset(
  config: ml_collections.ConfigDict,
  start: Start,
  source: Source,
  shards: range,
) -> grain.IterDataset:
  """Batches of these shards, rows of shard after shard.

  An element holds the fields of `Rows` without `example`.
  """
  data, eos = config.data, start.config.eos_ids
  if not eos:
    raise UserError("config.json: training needs an eos_token_id.")
  if len(source) < data.shards:
    raise UserError(
      f"config.data.shards is {data.shards}, but the data has only"
      f" {len(source)} records."
    )
  encode = lambda r: _encode(r, source, start, config.length)
  spans = dict.fromkeys(("tokens", "supervised"), config.length)
  unit = dict.fromkeys(spans, max(config.block_lengths))

  def stream(shard: int) -> grain.IterDataset:
    records: Any = grain.MapDataset.source(source).seed(config.seed)
    if data.shuffle:
      records = records.shuffle()
    records = records[shard :: data.shards].repeat().map(encode)
    documents = records.to_iter_dataset(grain.ReadOptions(num_threads=0))
    documents = experimental.FlatMapIterDataset(
      documents, _Pieces(config.length)
    )
    rows = experimental.FirstFitPackIterDataset(
      documents,
      length_struct=spans,
      num_packing_bins=data.bins,
      shuffle_bins=False,
      pack_alignment_struct=unit,
    )
    rows = rows.map(lambda row: _row(row, eos[0]))
    return rows.batch(config.batch_size // data.shards)

  joined = experimental.ZipIterDataset([stream(s) for s in shards])
  return joined.map(
    lambda parts: jax.tree.map(lambda *x: np.concatenate(x), *parts)
  )


def local_shards(count: int) -> range:
  """The shards that this process reads."""
  each = count // jax.process_count()
  return range(each * jax.process_index(), each * (jax.process_index() + 1))


def place_rows(
  batch: dict[str, np.ndarray], mesh: Mesh, batch_size: int
) -> Rows:
  """Global arrays, of which this process gives its part."""
  sharding = NamedSharding(mesh, meshes.ROWS)
  each = batch_size // jax.process_count()
  example = np.arange(each, dtype=np.int32) + each * jax.process_index()
  put: Callable[[np.ndarray], jax.Array] = lambda x: (
    jax.make_array_from_process_local_data(
      sharding, x, (batch_size, *x.shape[1:])
    )
  )
  return Rows(**jax.tree.map(put, batch), example=put(example))


def _encode(
  record: dict[str, Any], source: Source, start: Start, length: int
) -> Document | None:
  """A document, or None for a record that is skipped."""
  try:
    document = encode_record(
      record, start.tokenizer, start.template, start.config.eos_ids
    )
    mask = start.config.mask_id
    if mask is not None and (document["tokens"] == mask).any():
      raise UserError(f"holds the mask token {mask}")
    if not document["supervised"][:length].any():
      raise UserError(f"nothing to learn within a row of {length} tokens")
  except UserError as e:
    return source.refuse(record["where"], str(e).rstrip("."))
  return document


class _Pieces(experimental.FlatMapTransform):
  """Cuts what is longer than a row.

  A text goes on in the next piece. A conversation ends there: the rest of an
  answer without its question teaches nothing.
  """

  max_fan_out = 1 << 20

  def __init__(self, length: int):
    self._length = length

  def flat_map(self, element: Document) -> list[Document]:
    """Pieces of at most a row's length that hold something to learn."""
    size = element["tokens"].size
    ends = range(0, size, self._length)
    if not element["supervised"].all():
      ends = range(0, 1)
    pieces = [
      {k: v[at : at + self._length] for k, v in element.items()} for at in ends
    ]
    return [p for p in pieces if p["supervised"].any()]


def _row(row: dict[str, np.ndarray], eos: int) -> dict[str, np.ndarray]:
  """A packed row: fill is EOS, and belongs to the document before it."""
  segment = row["tokens_segment_ids"]
  index = np.arange(segment.size, dtype=np.int32)
  before = np.concatenate([[0], segment[:-1]])
  begins = (segment != before) & (segment > 0)
  return {
    "tokens": np.where(segment > 0, row["tokens"], eos).astype(np.int32),
    "supervised": (row["supervised"] > 0) & (segment > 0),
    "start": np.maximum.accumulate(np.where(begins, index, 0)).astype(np.int32),
  }
