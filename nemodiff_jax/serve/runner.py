"""The engine's hold on the device: slots, and the programs over them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nemodiff_jax.decode.adjust import Adjust
from nemodiff_jax.decode.config import DecodeConfig, RowSettings
from nemodiff_jax.decode.prefill import Queries, aligned
from nemodiff_jax.decode.rows import make_rows
from nemodiff_jax.decode.state import (
  Decoder,
  DecodeState,
  Picked,
  Rows,
  Weights,
)
from nemodiff_jax.serve import chunks, device, slot_rows
from nemodiff_jax.serve.adjusting import adjust_row
from nemodiff_jax.serve.cache import Cache
from nemodiff_jax.serve.contract import Adjustments
from nemodiff_jax.serve.guiding import first_mask, make_guides
from nemodiff_jax.serve.plan import buckets, pages_of
from nemodiff_jax.serve.programs import Key, Programs
from nemodiff_jax.serve.request import Chunk, Visit
from nemodiff_jax.serve.steps import Guides
from pallas_kernels.range_attention import PAGE

Parked = tuple[DecodeState, Adjust | None]


class Runner:
  """Dispatches what visits say, in order; nothing here waits for the device.

  Attributes:
    programs: ("read", queries), ("score", queries), ("begin", queries,
      adjusted) and ("passes", rows, width, logprobs, adjusted, traced).
  """

  def __init__(
    self,
    decoder: Decoder,
    weights: Weights,
    config: DecodeConfig,
    cache: Cache,
    *,
    rows: int,
    max_length: int,
    stop_ids: int,
  ):
    """Makes empty slots.

    Args:
      decoder: static part.
      weights: parameters, and the drafter.
      config: how rows decode that say nothing else.
      cache: the pages.
      rows: slots.
      max_length: of prompt + max_new_tokens.
      stop_ids: of a row, at most.
    """
    self.programs = Programs(self._lower)
    self._decoder = decoder
    self._weights = weights
    self._config = config
    self._cache = cache
    self._rows = rows
    self._table = pages_of(max_length + decoder.block, PAGE)
    self._stop_ids = stop_ids
    self._empty = self._settings(RowSettings(), ())
    slots = slot_rows.empty_slots(decoder, rows, self._empty)
    self._slots = slot_rows.settle(decoder, slots)
    self._masks = decoder.mode.masks(decoder.block)
    self._shapes = jax.tree.map(_shape, (cache.arrays, self._slots))
    vocab = decoder.module.config.vocab_size
    self._neutral = adjust_row(vocab, (), Adjustments())
    self._adjust: Adjust | None = None  # Of all slots, when first used.

  def keys(self, widths: Sequence[int]) -> Iterator[Key]:
    """Every program that rows with passes of these widths may need."""
    keeps = dict.fromkeys((False, self._decoder.logprobs is not None))
    for size in chunks.SIZES:
      yield "read", size
    for size in chunks.last_sizes(self._masks):
      yield "begin", size, False
    for keep in keeps:
      for rows in buckets(self._rows):
        for width in widths:
          yield "passes", rows, width, keep, False, False

  def read(self, chunk: Chunk) -> None:
    """Reads a chunk of a prompt, or of a row that comes back, into its pages."""
    size = chunks.size(chunk.stop - chunk.start)
    program = self.programs.get(("read", size))
    cache = self._cache
    cache.arrays = program(
      self._weights, cache.arrays, self._queries(chunk, size, 0)
    )

  def score(self, chunk: Chunk) -> Picked:
    """As `read`; returns [1, T] how likely each token is behind the one before.

    The last of them stand for the chunk's tokens, aligned at its end; its last
    token's is of the prompt's next one, if there is one.
    """
    size = chunks.size(chunk.stop - chunk.start)
    program = self.programs.get(("score", size))
    ids = chunk.request.ids[chunk.start + 1 : chunk.stop + 1]
    count = chunk.stop - chunk.start
    following = np.zeros((1, size), np.int32)
    following[0, size - count : size - count + len(ids)] = ids
    self._cache.arrays, scored = program(
      self._weights,
      self._cache.arrays,
      self._queries(chunk, size, 0),
      following,
    )
    return scored

  def begin(
    self, chunk: Chunk, row: RowSettings, slot: int, own: Adjust | None = None
  ) -> device.Passed:
    """Reads the last chunk of a prompt, and begins its row in its slot.

    Args:
      chunk: of the prompt.
      row: its settings.
      slot: of the row.
      own: how it changes its logits, with the mask of its first token.
    """
    size = chunks.size(chunk.stop - chunk.start + self._masks)
    program = self.programs.get(("begin", size, own is not None))
    changes = ()
    if own is not None:
      changes = self._adjusted(), own
    elif self._adjust is not None:
      self._put_adjust(self._neutral, slot)
    self._cache.arrays, self._slots, adjust, passed = program(
      self._weights,
      self._cache.arrays,
      self._slots,
      self._queries(chunk, size, self._masks),
      self._settings(row, chunk.request.prompt),
      np.int32(slot),
      *changes,
    )
    if own is not None:
      self._adjust = adjust
    return passed

  def passes(
    self,
    visit: Visit,
    logprobs: bool,
    guides: Guides | None = None,
    traced: bool = False,
  ) -> tuple[device.Passed, bool]:
    """Runs the passes of a visit; and whether that compiled a program.

    Args:
      visit: whose rows, pages and width.
      logprobs: whether a row asks for some.
      guides: of the first pass; None: no row changes its logits.
      traced: whether somebody watches what each pass proposes.
    """
    adjusted = guides is not None
    key = "passes", visit.bucket, visit.width, logprobs, adjusted, traced
    first = key not in self.programs
    active = np.zeros(visit.bucket, bool)
    active[: len(visit.active)] = visit.active
    limit = visit.passes
    if guides is not None and guides.once[active].all():
      limit = 1
    changes = (self._adjusted(), guides) if adjusted else ()
    self._cache.arrays, self._slots, adjust, passed = self.programs.get(key)(
      self._weights,
      self._cache.arrays,
      self._slots,
      visit.table(self._table, self._cache.pages.pages),
      active,
      np.int32(limit),
      *changes,
    )
    if adjusted:
      self._adjust = adjust
    return passed, first

  def park(self, slot: int) -> Parked:
    """The state of a row whose pages go to others."""
    at = np.int32(slot)
    adjust = self._adjust and slot_rows.take(self._adjust, at)
    return slot_rows.take(self._slots, at), adjust

  def resume(self, parked: Parked, slot: int, redraft: bool) -> None:
    """Puts a parked row into a slot."""
    row, adjust = parked
    if redraft:
      row = slot_rows.redraft(self._plain, row)
    self._slots = slot_rows.put(self._slots, row, np.int32(slot))
    if self._adjust is not None:
      self._put_adjust(adjust or self._neutral, slot)

  def move(self, moves: Sequence[tuple[int, int]]) -> None:
    """Rows change their slots, all at once."""
    pairs = np.full((2, self._rows), self._rows, np.int32)
    pairs[0] = 0
    for i, pair in enumerate(moves):
      pairs[:, i] = pair
    self._slots = slot_rows.move(self._slots, pairs[0], pairs[1])
    if self._adjust is not None:
      self._adjust = slot_rows.move(self._adjust, pairs[0], pairs[1])

  @property
  def _plain(self) -> Decoder:
    return replace(self._decoder, logprobs=None)

  def _adjusted(self) -> Adjust:
    """The changes of all slots, of which most change nothing."""
    if self._adjust is None:
      tile = lambda x: jnp.tile(x, (self._rows, *(1,) * (x.ndim - 1)))
      changes = jax.tree.map(tile, self._neutral)
      self._adjust = slot_rows.settle(self._decoder, changes)
    return self._adjust

  def _put_adjust(self, row: Adjust, slot: int) -> None:
    self._adjust = slot_rows.put(self._adjusted(), row, np.int32(slot))

  def _lower(self, key: Key) -> Any:
    """A program ready to compile; it may be asked for by another thread."""
    name, size, *more = key
    pool, slots = self._shapes
    zeros: Any = lambda *shape: np.zeros(shape, np.int32)
    prompt = Queries(
      zeros(1, self._table), zeros(1, size), zeros(1, size), zeros(1)
    )
    if name == "read":
      return device.read_chunk.lower(self._plain, self._weights, pool, prompt)
    if name == "score":
      return device.score_chunk.lower(
        self._decoder, self._weights, pool, prompt, zeros(1, size)
      )
    changed = lambda: jax.tree.map(_shape, self._adjusted())
    changes: Any = ()
    if name == "begin":
      (adjusted,) = more
      if adjusted:
        own = replace(self._neutral, mask=first_mask(self._decoder, None))
        changes = changed(), own
      return device.begin.lower(
        self._decoder, self._weights, pool, slots, prompt, self._empty,
        np.int32(0), *changes,
      )  # fmt: skip
    width, keep, adjusted, traced = more
    decoder = self._decoder if keep else self._plain
    if adjusted:
      changes = changed(), make_guides(decoder, size, width, {})
    return device.visit.lower(
      replace(decoder, block=width, traced=traced),
      self._weights,
      pool,
      slots,
      zeros(size, self._table),
      np.zeros(size, bool),
      np.int32(0),
      *changes,
    )

  def _settings(self, row: RowSettings, prompt: Sequence[int]) -> Rows:
    config = self._decoder.module.config
    return make_rows(config, self._config, [row], [prompt], self._stop_ids)

  def _queries(self, chunk: Chunk, size: int, masks: int) -> Queries:
    """What a pass over a chunk takes."""
    table: Any = np.full((1, self._table), self._cache.pages.pages, np.int32)
    table[0, : len(chunk.pages)] = chunk.pages
    ids = chunk.request.ids[chunk.start : chunk.stop]
    tokens, positions = aligned(
      ids, chunk.start, size, masks, self._decoder.mask_id
    )
    length: Any = np.array([chunk.stop], np.int32)
    return Queries(table, tokens[None], positions[None], length)


def _shape(x: jax.Array) -> jax.ShapeDtypeStruct:
  """What a program has to know of an array; the array itself may be donated."""
  sharding = x.sharding if len(x.sharding.device_set) > 1 else None
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
