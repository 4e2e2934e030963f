"""The data pipeline: sources -> packed rows -> arrays of the global batch.

The order depends on the seed alone. A run's data is cut into `data.shards`
streams, each shuffled, packed and batched on its own; a process reads some of
them. So the batches are the same on any number of processes that divides the
streams, and each stream's state is saved with the checkpoint.
"""

from collections.abc import Callable, Iterable
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
from train.sources import (
  Arithmetic,
  HeldOut,
  Lines,
  family_shares,
  source_paths,
)
from train.start import Start
from train.token_files import TokenFiles

Source = Lines | Arithmetic | HeldOut | TokenFiles


def open_source(
  source: str, model: ModelConfig, seed: int, on_error: str = "error"
) -> Source:
  """What config.data.source names.

  Raises:
    UserError: files that are not there.
  """
  if (shares := family_shares(source)) is not None:
    return Arithmetic(seed, shares)
  paths = source_paths(source)
  if paths[0].is_dir():
    return TokenFiles(paths[0], model.vocab_size)
  return Lines(paths, on_error)


class Batches:
  """Batches of some streams, rows of stream after stream, without an end.

  An element holds the fields of `Rows` without `example` (and without `start`
  where rows are not packed), and `filled` [B]: the tokens of a row that belong
  to documents.
  """

  def __init__(self, streams: dict[int, grain.DatasetIterator]):
    self._streams = streams

  def __next__(self) -> dict[str, np.ndarray]:
    parts = [next(stream) for stream in self._streams.values()]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)

  def states(self) -> dict[int, Any]:
    """What each stream goes on from, as JSON holds it."""
    return {i: stream.get_state() for i, stream in self._streams.items()}

  def restore(self, states: dict[int, Any]) -> None:
    """Sets the streams to where `states` was taken, in whatever process."""
    for i, stream in self._streams.items():
      stream.set_state(states[i])


def make_batches(
  config: ml_collections.ConfigDict,
  start: Start,
  source: Source,
  streams: Iterable[int],
) -> Batches:
  """Batches of these of the data.shards streams.

  Raises:
    UserError: a model without EOS; fewer records than streams.
  """
  if not start.config.eos_ids:
    raise UserError("config.json: training needs an eos_token_id.")
  if len(source) < config.data.shards:
    raise UserError(
      f"config.data.shards is {config.data.shards}, but the data has only"
      f" {len(source)} records."
    )
  return Batches({i: iter(_stream(config, start, source, i)) for i in streams})


def _stream(config, start: Start, source: Source, i: int) -> grain.IterDataset:
  """One stream's part of each batch."""
  data, count = config.data, config.data.shards
  spans = dict.fromkeys(("tokens", "supervised"), config.length)
  size = len(range(i, len(source), count))
  records: Any = grain.MapDataset.source(source).seed(config.seed)
  if data.shuffle:
    records = records.shuffle()
  encode = _Encoder(source, start, config.length, size)
  records = records[i::count].repeat().map(encode)
  documents = records.to_iter_dataset(grain.ReadOptions(num_threads=0))
  documents = experimental.FlatMapIterDataset(documents, _Pieces(config.length))
  eos = start.config.eos_ids[0]
  if data.pack:
    packed = experimental.FirstFitPackIterDataset(
      documents,
      length_struct=spans,
      num_packing_bins=data.bins,
      shuffle_bins=False,
      pack_alignment_struct=dict.fromkeys(spans, max(config.block_lengths)),
    )
    rows = packed.map(lambda row: _row(row, eos))
  else:
    rows = documents.map(lambda one: _alone(one, config.length, eos))
  return rows.batch(config.batch_size // count)


def local_streams(count: int) -> range:
  """Those of `count` streams that this process reads."""
  each = count // jax.process_count()
  return range(each * jax.process_index(), each * (jax.process_index() + 1))


def place_rows(
  batch: dict[str, np.ndarray], mesh: Mesh, batch_size: int, first: int = 0
) -> Rows:
  """Global arrays, of which this process gives its part.

  Args:
    batch: the fields of `Rows` but `example`, of this process's rows.
    mesh: of all devices.
    batch_size: rows of all processes.
    first: example index of the first row.
  """
  sharding = NamedSharding(mesh, meshes.ROWS)
  each = batch_size // jax.process_count()
  first += each * jax.process_index()
  example = np.arange(first, first + each, dtype=np.int32)
  put: Callable[[np.ndarray], jax.Array] = lambda x: (
    jax.make_array_from_process_local_data(
      sharding, x, (batch_size, *x.shape[1:])
    )
  )
  fields = {"start": None} | jax.tree.map(put, batch)
  return Rows(**fields, example=put(example))


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
    source.refuse(record["where"], str(e).rstrip("."))
    return None
  return document


class _Encoder:
  """Encodes a stream's records, and notices that none can be used."""

  def __init__(self, source: Source, start: Start, length: int, size: int):
    self._given = source, start, length
    self._size = size  # Records of the stream.
    self._skipped = 0  # Since the last that could be used.

  def __call__(self, record: dict[str, Any]) -> Document | None:
    document = _encode(record, *self._given)
    self._skipped = 0 if document is not None else self._skipped + 1
    if self._skipped >= 2 * self._size:  # Whatever the order: all of them.
      raise UserError(
        f"{record['where']} and the other lines of its stream ({self._size} in"
        " all) cannot be used; mend them, or lower config.data.shards."
      )
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
    "filled": np.array((segment > 0).sum(), np.int32),
    "tokens": np.where(segment > 0, row["tokens"], eos).astype(np.int32),
    "supervised": (row["supervised"] > 0) & (segment > 0),
    "start": np.maximum.accumulate(np.where(begins, index, 0)).astype(np.int32),
  }


def _alone(document: Document, length: int, eos: int) -> dict[str, np.ndarray]:
  """A row of one document, filled with EOS: it needs no `start`."""
  size = document["tokens"].size
  pad = lambda x, value: np.pad(x, (0, length - size), constant_values=value)
  return {
    "filled": np.array(size, np.int32),
    "tokens": pad(document["tokens"], eos).astype(np.int32),
    "supervised": pad(document["supervised"] > 0, False),
  }
