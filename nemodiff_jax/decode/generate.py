"""Batches of prompts in, one result per prompt out."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from nemodiff_jax.decode import driver
from nemodiff_jax.decode.config import DecodeConfig, RowSettings
from nemodiff_jax.decode.log import fold, new_log
from nemodiff_jax.decode.prefill import prefill
from nemodiff_jax.decode.results import DecodedIds, RowOutput, read_results
from nemodiff_jax.decode.rows import cache_capacity, make_decoder, make_rows
from nemodiff_jax.decode.state import (
  RUNNING,
  Decoder,
  DecodeState,
  Emitted,
  Weights,
)
from nemodiff_jax.errors import UserError
from nemodiff_jax.nn.model import Transformer
from nemodiff_jax.text.stream import TextStream
from nemodiff_jax.text.tokenizer import Tokenizer


def decode_ids(
  module: Transformer,
  weights: Weights,
  config: DecodeConfig,
  prompts: Sequence[Sequence[int]],
  settings: Sequence[RowSettings],
  *,
  batch: int | None = None,
  attention: str | None = None,
  tokenizer: Tokenizer | None = None,
) -> list[DecodedIds]:
  """Decodes one batch.

  In the compiled loop; pass by pass if a row has stop strings, since text
  cannot be matched on the device.

  Args:
    module: the model.
    weights: parameters, and the drafter if linear_spec is to use it.
    config: how to decode.
    prompts: token ids, each of at least one token.
    settings: of each row.
    batch: rows to pad to, so that batches share a program; default: none.
    attention: implementation of range attention; None: chosen.
    tokenizer: for stop strings.

  Raises:
    UserError: stop strings without a tokenizer.
  """
  if any(s.stop for s in settings):
    steps = stream_ids(
      module, weights, config, prompts, settings,
      batch=batch, attention=attention, tokenizer=tokenizer,
    )  # fmt: skip
    last = collections.deque(steps, maxlen=1).pop()
    return last.results()
  decoder, state, emitted = start(
    module, weights, config, prompts, settings, batch, attention
  )
  log = new_log(decoder, len(state.count), state.capacity)
  log = fold(log, state, emitted)
  state, log = driver.run(decoder, weights, state, log)
  return read_results(config, state, log, settings)


@dataclasses.dataclass(frozen=True)
class Step:
  """A batch after the prefill or after a pass.

  Attributes:
    config: how it decodes.
    state: donated to the next pass; read it before asking for the next.
    emitted: what the pass emitted, on the host.
    outputs: of each row, as far as known; they grow with the next pass.
  """

  config: DecodeConfig
  state: DecodeState
  emitted: Emitted
  outputs: Sequence[RowOutput]

  def results(self) -> list[DecodedIds]:
    """What is known; a row that has not ended shows 'length'."""
    return [o.result() for o in self.outputs]


def stream_ids(
  module: Transformer,
  weights: Weights,
  config: DecodeConfig,
  prompts: Sequence[Sequence[int]],
  settings: Sequence[RowSettings],
  *,
  batch: int | None = None,
  attention: str | None = None,
  tokenizer: Tokenizer | None = None,
  traced: bool = False,
) -> Iterator[Step]:
  """Like `decode_ids`, but yields before the first and after every pass.

  The last step's results are those of `decode_ids`.
  """
  if tokenizer is None and any(s.stop for s in settings):
    raise UserError("stop strings need a tokenizer; use stop_token_ids.")
  decoder, state, emitted = start(
    module, weights, config, prompts, settings, batch, attention, traced
  )

  def stream(row: RowSettings) -> TextStream | None:
    return None if tokenizer is None else TextStream(tokenizer, row.stop)

  speculative = decoder.mode.speculative
  outputs = [RowOutput(s, speculative, stream(s)) for s in settings]
  while True:
    emitted, nfe, status = jax.device_get((emitted, state.nfe, state.status))
    hit = np.zeros(len(status), bool)
    for row, output in enumerate(outputs):
      if output.status == RUNNING:
        hit[row] = output.add(emitted, row, int(nfe[row]), int(status[row]))
    if hit.any():
      state = driver.end_rows(state, hit)
    yield Step(config, state, emitted, outputs)
    if all(o.status != RUNNING for o in outputs):
      return
    state, emitted = driver.one_pass(decoder, weights, state)


def start(
  module: Transformer,
  weights: Weights,
  config: DecodeConfig,
  prompts: Sequence[Sequence[int]],
  settings: Sequence[RowSettings],
  batch: int | None = None,
  attention: str | None = None,
  traced: bool = False,
) -> tuple[Decoder, DecodeState, Emitted]:
  """Prefills a batch; decoder and state go to `driver`."""
  decoder = make_decoder(module, config, settings, attention, traced)
  most = max(s.max_new_tokens for s in settings)
  longest = max(map(len, prompts))
  capacity = cache_capacity(module.config, config, longest, most)
  padding = max(0, (batch or 0) - len(prompts))
  padded = [*prompts, *[()] * padding]
  asked = [*settings, *[settings[0]] * padding]
  rows = make_rows(module.config, config, asked, padded)
  begun = prefill(decoder, weights, padded, rows, capacity)
  return decoder, *begun
