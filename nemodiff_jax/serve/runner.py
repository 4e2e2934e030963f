"""The engine's hold on the device: pool, slots, and the programs over them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nemodiff_jax.decode.config import DecodeConfig, RowSettings
from nemodiff_jax.decode.prefill import aligned
from nemodiff_jax.decode.rows import make_rows
from nemodiff_jax.decode.state import Decoder, DecodeState, Weights
from nemodiff_jax.nn.cache import init_cache
from nemodiff_jax.serve import chunks, device
from nemodiff_jax.serve.plan import pages_of
from nemodiff_jax.serve.request import Chunk, Visit
from pallas_kernels.range_attention import PAGE


class Runner:
  """Dispatches what visits say, in order; nothing here waits for the device.

  Attributes:
    compiled: what programs have run, by name and sizes.
  """

  def __init__(
    self,
    decoder: Decoder,
    weights: Weights,
    config: DecodeConfig,
    *,
    rows: int,
    pages: int,
    max_length: int,
    stop_ids: int,
  ):
    """Makes the pool and empty slots.

    Args:
      decoder: static part.
      weights: parameters, and the drafter.
      config: how rows decode that say nothing else.
      rows: slots.
      pages: of the pool.
      max_length: of prompt + max_new_tokens.
      stop_ids: of a row, at most.
    """
    module = decoder.module
    self._decoder = decoder
    self.compiled: set[tuple] = set()
    self._weights = weights
    self._config = config
    self._rows = rows
    self._pages = pages
    self._table = pages_of(max_length + decoder.block, PAGE)
    self._stop_ids = stop_ids
    self._plain = replace(decoder, logprobs=None)
    self._pool = init_cache(module.config, pages, module.dtype, module.mesh)
    self._slots = device.empty_slots(
      decoder, rows, self._settings(RowSettings(), ())
    )
    self._masks = decoder.mode.masks(decoder.block)

  def read(self, chunk: Chunk) -> None:
    """Reads a chunk of a prompt, or of a row that comes back, into its pages."""
    size = chunks.size(chunk.stop - chunk.start)
    self.compiled.add(("read", size))
    self._pool = device.read_chunk(
      self._plain, self._weights, self._pool, *self._prompt(chunk, size, 0)
    )

  def begin(self, chunk: Chunk, row: RowSettings, slot: int) -> device.Passed:
    """Reads the last chunk of a prompt, and begins its row in its slot."""
    size = chunks.size(chunk.stop - chunk.start + self._masks)
    decoder = self._of(row.logprobs is not None)
    self.compiled.add(("begin", size, decoder.logprobs))
    prompt = self._prompt(chunk, size, self._masks)
    rows = self._settings(row, chunk.request.prompt)
    self._pool, self._slots, passed = device.begin(
      decoder, self._weights, self._pool, self._slots, *prompt, rows,
      np.int32(slot),
    )  # fmt: skip
    return passed

  def passes(self, visit: Visit, logprobs: bool) -> tuple[device.Passed, bool]:
    """Runs the passes of a visit; and whether it was the program's first."""
    decoder = replace(self._of(logprobs), block=visit.width)
    program = "passes", visit.bucket, visit.width, decoder.logprobs
    first = program not in self.compiled
    self.compiled.add(program)
    active = np.zeros(visit.bucket, bool)
    active[: len(visit.active)] = visit.active
    self._pool, self._slots, passed = device.visit(
      decoder,
      self._weights,
      self._pool,
      self._slots,
      visit.table(self._table, self._pages),
      active,
      np.int32(visit.passes),
    )
    return passed, first

  def park(self, slot: int) -> DecodeState:
    """The state of a row whose pages go to others."""
    return device.take(self._slots, np.int32(slot))

  def resume(self, row: DecodeState, slot: int, redraft: bool) -> None:
    """Puts a parked row into a slot."""
    if redraft:
      row = device.redraft(self._plain, row)
    self._slots = device.put(self._slots, row, np.int32(slot))

  def move(self, moves: Sequence[tuple[int, int]]) -> None:
    """Rows change their slots, all at once."""
    pairs = np.full((2, self._rows), self._rows, np.int32)
    pairs[0] = 0
    for i, pair in enumerate(moves):
      pairs[:, i] = pair
    self._slots = device.move(self._slots, pairs[0], pairs[1])

  def _of(self, logprobs: bool) -> Decoder:
    return self._decoder if logprobs else self._plain

  def _settings(self, row: RowSettings, prompt: Sequence[int]):
    config = self._decoder.module.config
    return make_rows(config, self._config, [row], [prompt], self._stop_ids)

  def _prompt(self, chunk: Chunk, size: int, masks: int):
    """Table, tokens, positions and length that a pass over a chunk takes."""
    table = np.full((1, self._table), self._pages, np.int32)
    table[0, : len(chunk.pages)] = chunk.pages
    ids = chunk.request.ids[chunk.start : chunk.stop]
    tokens, positions = aligned(
      ids, chunk.start, size, masks, self._decoder.mask_id
    )
    length = np.array([chunk.stop], np.int32)
    return table, tokens[None], positions[None], length
