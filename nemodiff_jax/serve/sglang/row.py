"""One row of an answer of /generate, as it grows."""

import time
from typing import Any

from nemodiff_jax.decode.results import Logprobs
from nemodiff_jax.serve import logprobs
from nemodiff_jax.serve.contract import Counts, Event
from nemodiff_jax.serve.served import Served
from nemodiff_jax.serve.sglang.requests import Wanted


class Row:
  """One row's answer as it grows."""

  def __init__(self, served: Served, wanted: Wanted):
    """A row without tokens."""
    self._served = served
    self._wanted = wanted
    self._began = time.monotonic()
    self._text = ""
    self._ids: list[int] = []
    self._found: list[Logprobs] = []
    self._prompt: Logprobs | None = None
    self._reason: dict[str, Any] | None = None
    self._counts = Counts()

  def push(self, event: Event) -> None:
    """Adds an event."""
    self._text += event.text
    self._ids += event.token_ids
    if event.logprobs is not None:
      self._found.append(event.logprobs)
    self._prompt = event.prompt_logprobs or self._prompt
    if event.finish_reason is None:
      return
    self._counts = event.counts or self._counts
    self._reason = self._finish(event)
    if isinstance(event.matched, str) and self._wanted.stop_shown:
      self._text += event.matched

  def answer(self) -> dict[str, Any]:
    """Everything so far."""
    job, counts = self._wanted.job, self._counts
    meta: dict[str, Any] = {
      "id": self._wanted.rid,
      "finish_reason": self._reason,
      "prompt_tokens": len(job.prompt),
      "completion_tokens": len(self._ids),
      "cached_tokens": counts.reused,
      "weight_version": "default",
      "nfe": counts.nfe,
      "seed": job.row.seed,
    }
    if counts.cycles:
      meta["spec_accept_length"] = len(self._ids) / counts.cycles
      meta["spec_accept_token_num"] = counts.accepted
      meta["spec_draft_token_num"] = counts.drafted
      meta["spec_verify_ct"] = counts.cycles
    if self._reason is not None:
      meta["e2e_latency"] = time.monotonic() - self._began
    if self._wanted.scored:
      meta |= self._logprobs()
    made = {"text": self._text, "output_ids": self._ids, "meta_info": meta}
    if self._wanted.prompt_ids:
      made["prompt_token_ids"] = list(job.prompt)
    return made

  def _finish(self, event: Event) -> dict[str, Any]:
    if event.finish_reason == "length":
      return {"type": "length", "length": len(self._ids)}
    if event.finish_reason == "abort":
      return {
        "type": "abort",
        "message": "Aborted by a request.",
        "status_code": 499,
        "err_type": "AbortError",
      }
    last = self._ids[-1] if self._ids else None
    matched = last if event.matched is None else event.matched
    return {"type": "stop", "matched": matched}

  def _logprobs(self) -> dict[str, Any]:
    start, prompt = self._wanted.start, self._wanted.job.prompt
    asked = list(prompt[start:]) if start >= 0 else []
    made: dict[str, Any] = {"input_token_logprobs": []}
    scored = self._prompt
    if asked and scored is not None:
      rows = [
        [v, i, self._text_of(i)]
        for v, i in zip(scored.token, asked, strict=True)
      ]
      rows[0][0] = None  # What comes before it was not asked for.
      made["input_token_logprobs"] = rows
    found = logprobs.joined(self._found)
    made["output_token_logprobs"] = [
      [v, i, self._text_of(i)]
      for v, i in zip(found.token, self._ids, strict=True)
    ]
    if self._wanted.top:
      given = self._tops(scored)[: len(asked)] if scored is not None else []
      made["input_top_logprobs"] = [None, *given[1:]] if given else []
      made["output_top_logprobs"] = self._tops(found)
    return made

  def _tops(self, found: Logprobs) -> list[list[list[Any]]]:
    return [
      [[v, i, self._text_of(i)] for i, v in zip(ids, values, strict=True)]
      for ids, values in zip(found.top_ids, found.top, strict=True)
    ]

  def _text_of(self, token: int) -> str | None:
    return self._served.spelled(token) if self._wanted.texts else None
