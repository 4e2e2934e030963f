"""/metrics: vLLM's names, which benchmarks scrape, and our own beside them.

All figures of requests come from the engine's thread; the text is read by
another.
"""

import bisect
import dataclasses
import itertools
import threading
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from nemodiff_jax.serve.contract import Counts, Event, Job

_SECONDS = (
  0.001,
  0.005,
  0.01,
  0.025,
  0.05,
  0.1,
  0.25,
  0.5,
  1,
  2.5,
  5,
  10,
  30,
  60,
)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 50000)
_GAUGES = {
  "vllm:num_requests_running": ("running", "Rows that decode."),
  "vllm:num_requests_waiting": ("waiting", "Requests in the queue."),
  "vllm:kv_cache_usage_perc": ("pages_used_fraction", "Of the page pool, 0 to 1."),
}  # fmt: skip


@dataclasses.dataclass
class _Histogram:
  bounds: Sequence[float]
  counts: list[int] = dataclasses.field(default_factory=list)
  total: float = 0.0

  def __post_init__(self):
    self.counts = [0] * (len(self.bounds) + 1)

  def add(self, value: float) -> None:
    self.counts[bisect.bisect_left(self.bounds, value)] += 1
    self.total += value

  def lines(self, name: str, labels: str) -> Iterator[str]:
    below = 0
    for bound, count in zip([*self.bounds, "+Inf"], self.counts, strict=True):
      below += count
      yield f'{name}_bucket{{{labels},le="{bound}"}} {below}'
    yield f"{name}_sum{{{labels}}} {self.total}"
    yield f"{name}_count{{{labels}}} {below}"


@dataclasses.dataclass
class _Running:
  """A request between its arrival and its end."""

  job: Job
  arrived: float
  first: float | None = None
  last: float = 0.0
  tokens: int = 0


class Metrics:
  """Counters and histograms since the start."""

  def __init__(self):
    """All of them at nothing."""
    self._lock = threading.Lock()
    self._running: dict[Hashable, _Running] = {}
    self._counters: dict[str, float] = dict.fromkeys(_COUNTERS, 0)
    self._ended: dict[str, int] = {"stop": 0, "length": 0, "abort": 0}
    self._places: list[int] = []
    self._histograms = {
      name: _Histogram(_TOKENS if "tokens" in name else _SECONDS)
      for name in _HISTOGRAMS
    }

  def submitted(self, request: Hashable, job: Job) -> None:
    """A job has entered the queue."""
    self._running[request] = _Running(job, time.monotonic())

  def cancelled(self, request: Hashable) -> None:
    """A job was cancelled."""
    if self._running.pop(request, None) is not None:
      with self._lock:
        self._ended["abort"] += 1

  def events(self, events: Sequence[Event]) -> None:
    """What a step did."""
    now = time.monotonic()
    with self._lock:
      said = sum(len(e.token_ids) for e in events)
      self._count("vllm:generation_tokens", said)
      self._add("vllm:iteration_tokens_total", said)
      for event in events:
        row = self._running.get(event.request)
        if row is not None:
          self._one(row, event, now)

  def text(self, model: str, statistics: Mapping[str, float]) -> str:
    """Everything in Prometheus' text format.

    Args:
      model: its name, a label of every line.
      statistics: of the engine.
    """
    labels = f'model_name="{_escaped(model)}"'
    lines = []
    with self._lock:
      for name, help_text in _COUNTERS.items():
        lines += _head(name, "counter", help_text)
        lines.append(f"{name}_total{{{labels}}} {self._counters[name]}")
      name = "vllm:request_success"
      lines += _head(name, "counter", "Requests that ended, by the reason.")
      for reason, count in self._ended.items():
        lines.append(
          f'{name}_total{{{labels},finished_reason="{reason}"}} {count}'
        )
      name = "vllm:spec_decode_num_accepted_tokens_per_pos"
      lines += _head(name, "counter", "Accepted, by place in the draft.")
      for i, count in enumerate(self._places):
        lines.append(f'{name}_total{{{labels},position="{i}"}} {count}')
      for name, help_text in _HISTOGRAMS.items():
        lines += _head(name, "histogram", help_text)
        lines += self._histograms[name].lines(name, labels)
    for name, (key, help_text) in _GAUGES.items():
      lines += _head(name, "gauge", help_text)
      lines.append(f"{name}{{{labels}}} {statistics.get(key, 0)}")
    for key, value in statistics.items():
      lines += _head(f"nemodiff:engine_{key}", "gauge", "Of the engine.")
      lines.append(f"nemodiff:engine_{key}{{{labels}}} {value}")
    return "\n".join(lines) + "\n"

  def _one(self, row: _Running, event: Event, now: float) -> None:
    new = len(event.token_ids)
    if new and row.first is None:
      row.first = now
      self._add("vllm:time_to_first_token_seconds", now - row.arrived)
    elif new:
      self._add("vllm:inter_token_latency_seconds", (now - row.last) / new)
    if new:
      row.last, row.tokens = now, row.tokens + new
    if event.finish_reason is None:
      return
    del self._running[event.request]
    reason = event.finish_reason
    self._ended[reason] = self._ended.get(reason, 0) + 1
    self._add("vllm:e2e_request_latency_seconds", now - row.arrived)
    self._add("vllm:request_prompt_tokens", len(row.job.prompt))
    self._add("vllm:request_generation_tokens", row.tokens)
    self._add("vllm:request_params_max_tokens", row.job.row.max_new_tokens)
    if row.first is not None and row.tokens > 1:
      each = (row.last - row.first) / (row.tokens - 1)
      self._add("vllm:request_time_per_output_token_seconds", each)
    self._count("vllm:prompt_tokens", len(row.job.prompt))
    self._passes(event.counts or Counts(), row)

  def _passes(self, counts: Counts, row: _Running) -> None:
    self._count("vllm:prefix_cache_queries", len(row.job.prompt))
    self._count("vllm:prefix_cache_hits", counts.reused)
    self._count("nemodiff:forward_passes", counts.nfe)
    if counts.mode == "diffusion":
      self._count("vllm:diffusion_num_denoising_steps", counts.nfe)
      self._count(
        "vllm:diffusion_num_canvas_positions", counts.nfe * counts.block
      )
      self._count("vllm:diffusion_num_committed_tokens", row.tokens)
    elif counts.cycles:
      self._count("vllm:spec_decode_num_drafts", counts.cycles)
      self._count("vllm:spec_decode_num_draft_tokens", counts.drafted)
      self._count("vllm:spec_decode_num_accepted_tokens", counts.accepted)
      pairs = itertools.zip_longest(self._places, counts.places, fillvalue=0)
      self._places = [a + b for a, b in pairs]

  def _count(self, name: str, by: float) -> None:
    self._counters[name] += by

  def _add(self, name: str, value: float) -> None:
    self._histograms[name].add(value)


_COUNTERS = {
  "vllm:prompt_tokens": "Tokens of prompts of requests that ended.",
  "vllm:generation_tokens": "Tokens generated.",
  "vllm:prefix_cache_queries": "Tokens of prompts looked up.",
  "vllm:prefix_cache_hits": "Tokens of prompts that were there.",
  "vllm:spec_decode_num_drafts": "Drafts verified (speculative modes).",
  "vllm:spec_decode_num_draft_tokens": "Tokens of these drafts.",
  "vllm:spec_decode_num_accepted_tokens": "Of these, accepted.",
  "vllm:diffusion_num_denoising_steps": "Forward passes of diffusion.",
  "vllm:diffusion_num_canvas_positions": "Positions of these passes.",
  "vllm:diffusion_num_committed_tokens": "Tokens that came of them.",
  "nemodiff:forward_passes": "Forward passes, by each mode's counting.",
}
_HISTOGRAMS = {
  "vllm:time_to_first_token_seconds": "From arrival.",
  "vllm:inter_token_latency_seconds": "Between tokens.",
  "vllm:request_time_per_output_token_seconds": "Mean of a request.",
  "vllm:e2e_request_latency_seconds": "From arrival to the end.",
  "vllm:request_prompt_tokens": "Tokens of a prompt.",
  "vllm:request_generation_tokens": "Tokens of an answer.",
  "vllm:request_params_max_tokens": "Most tokens that were asked for.",
  "vllm:iteration_tokens_total": "Tokens per step of the engine.",
}


def _head(name: str, kind: str, help_text: str) -> list[str]:
  full = f"{name}_total" if kind == "counter" else name
  return [f"# HELP {full} {help_text}", f"# TYPE {full} {kind}"]


def _escaped(text: Any) -> str:
  return (
    str(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
  )
