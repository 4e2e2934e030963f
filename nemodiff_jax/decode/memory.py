"""How much memory a decode needs, known before anything is allocated."""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp

from nemodiff_jax.decode.config import DecodeConfig
from nemodiff_jax.decode.generate import cache_capacity, largest_pass
from nemodiff_jax.errors import UserError
from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.nn.model import abstract_params
from pallas_kernels.range_attention.reference import CHUNK

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Needs:
  """Bytes of a decode, on each device.

  Attributes:
    params: parameters.
    cache: keys and values of the batch.
    work: logits and the largest activations of the widest pass.
  """

  params: int
  cache: int
  work: int

  @property
  def total(self) -> int:
    """All of it."""
    return self.params + self.cache + self.work


def estimate(
  model: ModelConfig,
  config: DecodeConfig,
  dtype,
  batch: int,
  prompt: int,
  max_new_tokens: int,
  *,
  scheme: str = "none",
  devices: int = 1,
) -> Needs:
  """Estimates the bytes of decoding `batch` rows of up to `prompt` tokens.

  The parameters are quantised by `scheme` and shared by `devices`.
  """
  item = jnp.dtype(dtype).itemsize
  capacity = cache_capacity(config, prompt, max_new_tokens)
  per_position = 2 * model.num_layers * model.num_kv_heads * model.head_dim
  queries, read = largest_pass(config, prompt)
  scores = 3 * 4 * model.num_heads * min(CHUNK, capacity) // devices
  ffn = model.intermediate_size // devices
  activations = item * (4 * model.hidden_size + 3 * ffn)
  logits = 3 * 4 * read * model.vocab_size
  size = config.block_length
  if config.mode == "quadratic_spec":  # Scores of every row's masks.
    logits += 3 * 4 * size**3 * model.num_heads
  elif config.mode != "ar":  # Ranks of confidences.
    logits += 2 * 4 * size**2
  return Needs(
    params=param_bytes(model, jnp.dtype(dtype), scheme) // devices,
    cache=item * batch * capacity * per_position // devices,
    work=batch * (logits + queries * (scores + activations)),
  )


def check_memory(
  model: ModelConfig,
  config: DecodeConfig,
  dtype,
  batch: int,
  prompt: int,
  max_new_tokens: int,
  *,
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
      scheme=scheme, devices=devices,
    )  # fmt: skip

  def fits(rows: int, length: int) -> bool:
    needs = needed(rows, length)
    return needs.total - (needs.params if loaded else 0) <= free

  if fits(batch, prompt):
    return
  needs = needed(batch, prompt)
  device = jax.local_devices()[0].device_kind
  message = (
    f"batch {batch} x length {prompt + max_new_tokens} needs about"
    f" {needs.total / _GIB:.1f} GiB (parameters {needs.params / _GIB:.1f},"
    f" cache {needs.cache / _GIB:.1f}, logits and activations"
    f" {needs.work / _GIB:.1f}), but {device} has {free / _GIB:.1f} GiB free"
    f"{' beside the parameters' if loaded else ''}. "
  )
  rows = next((b for b in range(batch, 0, -1) if fits(b, prompt)), 0)
  if rows:
    raise UserError(
      message + f"The largest batch that fits at this length is {rows}.",
      "memory",
    )
  low, high = 0, prompt  # low fits (if anything does), high does not.
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if fits(1, middle) else (low, middle)
  if low and fits(1, low):
    raise UserError(
      message
      + f"The largest that fits is batch 1 x length {low + max_new_tokens}.",
      "memory",
    )
  raise UserError(
    message
    + "Not even a short prompt fits: use fewer max_new_tokens, a smaller block,"
    " bfloat16 or a smaller model.",
    "memory",
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
