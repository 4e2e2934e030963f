"""What came of each prompt, copied from the state."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np

from nemodiff_jax.decode.config import DecodeConfig, RowSettings
from nemodiff_jax.decode.state import STOPPED, DecodeState, Picked


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


def read_results(
  config: DecodeConfig, state: DecodeState, settings: Sequence[RowSettings]
) -> list[DecodedIds]:
  """The output of every row that has settings, in one copy to the host."""
  output, count, nfe, status, accepted, cycles = jax.device_get(
    (
      state.output,
      state.count,
      state.nfe,
      state.status,
      state.accepted,
      state.cycles,
    )
  )
  speculative = config.mode.endswith("_spec")
  return [
    DecodedIds(
      token_ids=output.token[b, : count[b]].tolist(),
      finish_reason="stop" if status[b] == STOPPED else "length",
      nfe=int(nfe[b]),
      accepted=accepted[b, : cycles[b]].tolist() if speculative else None,
      logprobs=_logprobs(output, b, count[b], row.logprobs),
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
