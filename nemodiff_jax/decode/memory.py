"""How much memory a decode needs, known before anything is allocated."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from nemodiff_jax.decode.config import DecodeConfig, RowSettings
from nemodiff_jax.decode.modes import MODES
from nemodiff_jax.decode.rows import asked, cache_capacity, largest_pass
from nemodiff_jax.decode.sampling import MAX_READ
from nemodiff_jax.decode.state import Sampling
from nemodiff_jax.errors import UserError
from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.nn.model import abstract_params
from pallas_kernels.range_attention.chunks import CHUNK, QUERIES

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Needs:
  """Bytes of a decode, on each device.

  Attributes:
    params: parameters.
    cache: keys and values of the batch.
    output: tokens, and their log-probabilities where asked for.
    work: the logits, or the activations of the widest pass: the larger.
  """

  params: int
  cache: int
  output: int
  work: int

  @property
  def total(self) -> int:
    """All of it."""
    return self.params + self.cache + self.output + self.work


def estimate(
  model: ModelConfig,
  config: DecodeConfig,
  dtype,
  batch: int,
  prompt: int,
  max_new_tokens: int,
  *,
  settings: Sequence[RowSettings] = (),
  scheme: str = "none",
  devices: int = 1,
) -> Needs:
  """Estimates the bytes of decoding `batch` rows of up to `prompt` tokens.

  The parameters are quantised by `scheme` and shared by `devices`. Of the
  `settings`, what needs more logits (sampling, filters) or output counts.
  """
  item = jnp.dtype(dtype).itemsize
  capacity = cache_capacity(model, config, prompt, max_new_tokens)
  per_position = 2 * model.num_layers * model.num_kv_heads * model.head_dim
  return Needs(
    params=param_bytes(model, jnp.dtype(dtype), scheme) // devices,
    cache=item * batch * capacity * per_position // devices,
    output=batch * capacity * _output_bytes(settings),
    work=max(
      _layer_bytes(model, config, item, batch, prompt, capacity, devices),
      _logits_bytes(model, config, batch, prompt, settings),
    ),
  )


def _output_bytes(settings: Sequence[RowSettings]) -> int:
  """Bytes of the output per position: a token, and what it is told with."""
  top = [s.logprobs for s in settings if s.logprobs is not None]
  return 8 + (4 + 8 * max(top) if top else 0)


def _layer_bytes(
  model: ModelConfig,
  config: DecodeConfig,
  item: int,
  batch: int,
  prompt: int,
  capacity: int,
  devices: int,
) -> int:
  """Activations of a layer in the widest pass, and attention's scores."""
  queries, _ = largest_pass(config, prompt)
  ffn = model.intermediate_size // devices
  activations = item * (4 * model.hidden_size + 3 * ffn)
  turn = min(queries, QUERIES) if jax.default_backend() == "cpu" else queries
  heads = model.num_heads // devices
  scores = 4 * turn * heads * min(CHUNK, capacity)
  if MODES[config.mode].prefill_masks:  # Every row's masks among themselves.
    scores += 2 * 4 * config.block_length**3 * heads
  return batch * (queries * activations + scores)


def _logits_bytes(
  model: ModelConfig,
  config: DecodeConfig,
  batch: int,
  prompt: int,
  settings: Sequence[RowSettings],
) -> int:
  """Logits of the positions that are read at a time, and copies of them.

  Copies as counted in compiled programs: without and with the mask id; then
  scaled and with noise; then their ordered bits, masses and what is kept. A
  fifth where rows are sampled: what attention holds beside them.
  """
  _, slots = largest_pass(config, prompt)
  rows = min(batch, max(1, MAX_READ // slots))
  mode = MODES[config.mode]
  copies = 2 if mode.masked else 1
  if any(s.logprobs is not None for s in settings):
    copies = 2
  sampling = asked(settings)
  if sampling != Sampling.GREEDY:
    copies = 5 if sampling == Sampling.PLAIN else 8
  logits = 4 * copies * rows * slots * model.vocab_size
  if mode.reveals:
    logits += 4 * batch * slots**2  # Each confidence against the others.
  return logits


def check_memory(
  model: ModelConfig,
  config: DecodeConfig,
  dtype,
  batch: int,
  prompt: int,
  max_new_tokens: int,
  *,
  settings: Sequence[RowSettings] = (),
  loaded: bool = False,
  scheme: str = "none",
  devices: int = 1,
) -> None:
  """Refuses what cannot fit.

  Args:
    model: the architecture.
    config: how it decodes.
    dtype: of parameters and cache.
    batch: rows at a time.
    prompt: tokens of the longest prompt.
    max_new_tokens: most tokens any row may generate.
    settings: of the rows.
    loaded: the parameters are on the device already.
    scheme: how the parameters are quantised.
    devices: that share the model.

  Raises:
    UserError: too large; names the largest batch and length that fit.
  """
  free = free_memory()
  if free is None:
    return

  def needed(rows: int, length: int) -> Needs:
    return estimate(
      model, config, dtype, rows, length, max_new_tokens,
      settings=settings, scheme=scheme, devices=devices,
    )  # fmt: skip

  def fits(rows: int, length: int) -> bool:
    needs = needed(rows, length)
    return needs.total - (needs.params if loaded else 0) <= free

  if fits(batch, prompt):
    return
  needs = needed(batch, prompt)
  device = jax.local_devices()[0].device_kind
  raise UserError(
    f"batch {batch} x length {prompt + max_new_tokens} needs about"
    f" {needs.total / _GIB:.1f} GiB (parameters {needs.params / _GIB:.1f},"
    f" cache {needs.cache / _GIB:.1f}, logits, activations and output"
    f" {(needs.work + needs.output) / _GIB:.1f}), but {device} has"
    f" {free / _GIB:.1f} GiB free{' beside the parameters' if loaded else ''}."
    f" {_advice(fits, batch, prompt, max_new_tokens)}",
    "memory",
  )


def _advice(
  fits: Callable[[int, int], bool], batch: int, prompt: int, new: int
) -> str:
  """The largest batch that fits, else the longest prompt."""
  rows = next((b for b in range(batch, 0, -1) if fits(b, prompt)), 0)
  if rows:
    return f"The largest batch that fits at this length is {rows}."
  low, high = 0, prompt  # low fits (if anything does), high does not.
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if fits(1, middle) else (low, middle)
  if low and fits(1, low):
    return f"The largest that fits is batch 1 x length {low + new}."
  return (
    "Not even a short prompt fits: use fewer max_new_tokens, a smaller block,"
    " bfloat16 or a smaller model."
  )


def free_memory() -> int | None:
  """Bytes that can still be allocated on the first device; None: unknown."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and "bytes_limit" in stats:
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
  try:
    with open("/proc/meminfo", encoding="ascii") as file:
      lines = dict(line.split(":", 1) for line in file)
    return int(lines["MemAvailable"].split()[0]) * 1024
  except (OSError, KeyError, ValueError):
    pass
  try:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  except (ValueError, OSError, AttributeError):
    return None


@functools.cache
def param_bytes(model: ModelConfig, dtype, scheme: str = "none") -> int:
  """Bytes of the parameters of a model of this config."""
  shapes = jax.tree.leaves(abstract_params(model, dtype, scheme))
  return sum(x.size * x.dtype.itemsize for x in shapes)
