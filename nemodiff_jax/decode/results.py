"""What came of each prompt, on the host."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np

from nemodiff_jax.decode.config import DecodeConfig, RowSettings
from nemodiff_jax.decode.log import Log
from nemodiff_jax.decode.modes import MODES
from nemodiff_jax.decode.state import (
  RUNNING,
  STOPPED,
  DecodeState,
  Emitted,
  Picked,
)
from nemodiff_jax.text.stream import TextStream


@dataclasses.dataclass(frozen=True)
class Logprobs:
  """Log-probabilities of one row's tokens, of the distribution sampled from.

  Attributes:
    token: [T] of each token; None of one that diffusion was given (the end
      of a thinking budget), which no logits were read for.
    top_ids: [T][<= k] the likeliest tokens in its place.
    top: [T][<= k] of these.
  """

  token: list[float | None]
  top_ids: list[list[int]]
  top: list[list[float]]


@dataclasses.dataclass(frozen=True)
class DecodedIds:
  """What came of one prompt.

  Attributes:
    token_ids: the generated tokens, an ending EOS or stop id included.
    finish_reason: 'stop' or 'length'.
    nfe: forward passes, counted as the mode's page in docs/decoding.md says.
    accepted: tokens accepted per cycle, before the output is cut
      (speculative modes; None otherwise).
    logprobs: None unless asked for.
    text: what its text stream made of it; None without one.
  """

  token_ids: list[int]
  finish_reason: str
  nfe: int
  accepted: list[int] | None
  logprobs: Logprobs | None = None
  text: str | None = None


@dataclasses.dataclass
class RowOutput:
  """The output of one row as it grows, pass by pass.

  Attributes:
    settings: what the row asked for.
    speculative: whether its mode counts cycles.
    stream: is told of every token but the one that ends the row by its id;
      its stop strings end the row. None: no text.
    token_ids: the tokens so far.
    accepted: tokens accepted per cycle.
    logprobs: of the tokens so far; None unless asked for.
    nfe: passes so far.
    status: RUNNING, STOPPED or FULL.
  """

  settings: RowSettings
  speculative: bool
  stream: TextStream | None = None
  token_ids: list[int] = dataclasses.field(default_factory=list)
  accepted: list[int] = dataclasses.field(default_factory=list)
  logprobs: Logprobs | None = None
  nfe: int = 0
  status: int = RUNNING

  def __post_init__(self):
    if self.settings.logprobs is not None and self.logprobs is None:
      self.logprobs = Logprobs([], [], [])

  @property
  def text(self) -> str:
    """The text that is certain; '' without a stream."""
    return "" if self.stream is None else self.stream.text

  @property
  def matched(self) -> int | str | None:
    """The stop id or text that ended the row; None: an EOS, or none did."""
    if self.stream is not None and self.stream.matched is not None:
      return self.stream.matched
    if self.status != STOPPED or not self.token_ids:
      return None
    last = self.token_ids[-1]
    return last if last in self.settings.stop_token_ids else None

  def add(self, emitted: Emitted, row: int, nfe: int, status: int) -> bool:
    """Takes what a pass emitted, copied to the host, for this row of it.

    Returns:
      Whether a stop string ended the row, which the device does not know.
    """
    count = int(emitted.count[row])
    tokens = np.asarray(emitted.picked.token[row, :count]).tolist()
    if emitted.cycle[row]:
      self.accepted.append(int(emitted.cycle[row]))
    self.nfe, self.status = nfe, status
    told = count - (status == STOPPED and count > 0)
    hit = False
    if self.stream is not None:
      for at in range(told):
        if self.stream.push(tokens[at]):
          count, hit = at + 1, True
          break
      if hit:
        self.status = STOPPED
      if self.status != RUNNING:
        self.stream.close()
    self.token_ids += tokens[:count]
    if self.logprobs is not None:
      top = self.settings.logprobs
      more = _logprobs(emitted.picked, row, count, top)
      if more is not None:
        self.logprobs.token.extend(more.token)
        self.logprobs.top_ids.extend(more.top_ids)
        self.logprobs.top.extend(more.top)
    return hit and status == RUNNING

  def result(self) -> DecodedIds:
    """What is known; a row that has not ended shows 'length'."""
    return DecodedIds(
      token_ids=list(self.token_ids),
      finish_reason="stop" if self.status == STOPPED else "length",
      nfe=self.nfe,
      accepted=list(self.accepted) if self.speculative else None,
      logprobs=self.logprobs,
      text=None if self.stream is None else self.stream.text,
    )


def read_results(
  config: DecodeConfig,
  state: DecodeState,
  log: Log,
  settings: Sequence[RowSettings],
) -> list[DecodedIds]:
  """The output of every row that has settings, in one copy to the host."""
  log, count, nfe, status = jax.device_get(
    (log, state.count, state.nfe, state.status)
  )
  speculative = MODES[config.mode].speculative
  return [
    DecodedIds(
      token_ids=log.output.token[b, : count[b]].tolist(),
      finish_reason="stop" if status[b] == STOPPED else "length",
      nfe=int(nfe[b]),
      accepted=log.accepted[b, : log.cycles[b]].tolist()
      if speculative
      else None,
      logprobs=_logprobs(log.output, b, count[b], row.logprobs),
    )
    for b, row in enumerate(settings)
  ]


def _logprobs(
  output: Picked, row: int, count: int, top: int | None
) -> Logprobs | None:
  chosen, ids, values = output.logprob, output.top_ids, output.top_logprobs
  if top is None or chosen is None or ids is None or values is None:
    return None
  ids, values = ids[row, :count, :top], values[row, :count, :top]
  kept = np.isfinite(values)  # What a filter removed has none.
  return Logprobs(
    token=[None if math.isnan(x) else x for x in chosen[row, :count].tolist()],
    top_ids=[i[k].tolist() for i, k in zip(ids, kept, strict=True)],
    top=[v[k].tolist() for v, k in zip(values, kept, strict=True)],
  )
