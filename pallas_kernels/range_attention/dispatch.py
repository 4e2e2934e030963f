"""Picks the implementation of range attention for a device and a call."""

import dataclasses
import functools
import importlib
import importlib.util
import logging
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.chips import CHIPS, Chip
from pallas_kernels.range_attention import config, mosaic, tokamax

IMPLEMENTATIONS = ("xla", "mosaic", "triton", "tokamax")
_MOSAIC = {
  "9.0": ("mosaic_hopper", config.HOPPER),
  "10.0": ("mosaic_blackwell", config.BLACKWELL),
  "10.3": ("mosaic_blackwell", config.BLACKWELL),
}
_TRITON_MAJORS = (8, 9, 10, 12)
_TRITON_DIMS = (16, 32, 64, 128)
_MAX_KEYS = 2**31 - 2**16  # Positions are int32.


def resolve(
  implementation: str | None,
  q_shape: tuple[int, ...],
  k_shape: tuple[int, ...],
  dtype,
  *,
  starts: bool = False,
  paged: bool = False,
) -> str:
  """Names the implementation that runs a call, or says why it cannot.

  The device is the one of the abstract mesh in use, where a program is
  compiled for a GPU that is not there (`aot.compile_for`), else the first of
  `jax.devices()`. None prefers 'mosaic', then 'triton', then
  'tokamax', then 'xla'.

  Args:
    implementation: one of IMPLEMENTATIONS, or None to choose.
    q_shape: [B, T, N, H].
    k_shape: [B, S, K, H]; with pages, S is all that a row may have.
    dtype: of q, k and v.
    starts: whether the call gives k_start.
    paged: whether it gives a table of pages.

  Raises:
    ValueError: not a known name.
    NotImplementedError: known, but it cannot serve this call on this device.
  """
  if implementation not in (None, *IMPLEMENTATIONS):
    raise ValueError(
      f"implementation should be one of {IMPLEMENTATIONS} or None, got"
      f" {implementation!r}."
    )
  if implementation == "xla":
    return "xla"
  found = capability()
  reason, reasons = None, []
  # Unasked, tokamax serves calls with k_start alone: those of training.
  unasked = ("mosaic", "triton") + (("tokamax",) if starts else ())
  for name in unasked if implementation is None else (implementation,):
    reason = _refusal(name, found, q_shape, k_shape, dtype, starts, paged)
    if reason is None:
      _say(name, f"compute capability {found}", logging.INFO)
      return name
    reasons.append(f"{name}: {reason}")
  if implementation is not None:
    raise NotImplementedError(
      f"implementation={implementation!r} cannot be used: {reason}. Use 'xla',"
      " or None to have one chosen."
    )
  # Without a GPU there was no choice: not worth a line.
  level = logging.DEBUG if found is None else logging.INFO
  _say("xla", "; ".join(reasons), level)
  return "xla"


def forward(name: str) -> Callable:
  """The function (q, k, v, k_end, table) -> (out, lse) of a GPU kernel.

  The name is one from `resolve`; k and v are pools of pages of any size. GPU packages are imported here, when they are used.
  """
  found = str(capability())
  package = __name__.rpartition(".")[0]
  if name == "triton":
    kernel = importlib.import_module(f"{package}.triton").range_attention
    return functools.partial(kernel, capability=found)
  module, chip = _MOSAIC[found]
  kernel = importlib.import_module(f"{package}.{module}").range_attention
  count = processors() or chip.processors  # Known, or `resolve` refuses it.
  chip = dataclasses.replace(chip, processors=count)
  return functools.partial(kernel, chip=chip)


def capability() -> str | None:
  """Compute capability of the GPU a program is traced for; None: no GPU."""
  if (chip := _named()) is not None:
    return _text(chip)
  device = jax.devices()[0]
  found = getattr(device, "compute_capability", "")  # 'gfx...' on AMD's.
  return found if re.fullmatch(r"\d+\.\d+", found) else None


def processors() -> int | None:
  """Multiprocessors of the GPU a program is traced for; None: unknown.

  Chips of one compute capability differ: an H20 has 78, an H200 has 132.
  """
  if (chip := _named()) is not None:
    return chip.cores
  device = jax.devices()[0]
  if not hasattr(device, "compute_capability"):  # No GPU here: by the table.
    alike = (c.cores for c in CHIPS.values() if _text(c) == capability())
    return next(alike, None)
  count = getattr(device, "core_count", None)
  return count if isinstance(count, int) and count > 0 else None


def _named() -> Chip | None:
  """The chip of the abstract mesh in use, where the table has it."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  kind = None if device is None else device.device_kind
  return next((c for c in CHIPS.values() if c.name == kind), None)


def _text(chip: Chip) -> str:
  return "{}.{}".format(*chip.capability)


def _refusal(
  name: str,
  found: str | None,
  q_shape,
  k_shape,
  dtype,
  starts: bool,
  paged: bool,
) -> str | None:
  """Why an implementation cannot serve a call; None: it can."""
  if found is None:
    return (
      f"it needs an NVIDIA GPU, and JAX runs on {jax.default_backend()!r} here"
    )
  if name == "tokamax":
    if paged:
      return "its kernels take no table of pages"
    if found != "9.0":
      return f"it needs compute capability 9.0, found {found}"
    return tokamax.unsupported(q_shape, k_shape, dtype)
  if starts:
    return "its kernel takes no k_start"
  if name == "triton":
    return _triton_refusal(found, q_shape, k_shape, dtype)
  if jax.__version_info__ < (0, 11):
    return f"it needs jax 0.11 (Python 3.12), found jax {jax.__version__}"
  if found not in _MOSAIC:
    return f"it needs compute capability {' or '.join(_MOSAIC)}, found {found}"
  if processors() is None:
    return "the number of multiprocessors of the GPU cannot be read"
  return mosaic.unsupported(q_shape, k_shape, dtype)


def _triton_refusal(found: str, q_shape, k_shape, dtype) -> str | None:
  if not all(map(importlib.util.find_spec, ("triton", "jax_triton"))):
    return "it needs the packages triton and jax-triton (the extra 'cuda')"
  if tuple(map(int, found.split("."))) < (8, 0):
    return f"it needs compute capability 8.0, found {found}"
  if int(found.split(".")[0]) not in _TRITON_MAJORS:
    return f"it is not known to serve compute capability {found}"
  if dtype not in (jnp.bfloat16, jnp.float16):
    name = jnp.dtype(dtype).name
    return f"q, k and v should be bfloat16 or float16, got {name}"
  if q_shape[3] not in _TRITON_DIMS:
    return (
      f"the head dimension should be one of {_TRITON_DIMS}, got {q_shape[3]}"
    )
  if k_shape[1] > _MAX_KEYS:
    return f"the keys S should be at most {_MAX_KEYS}, got {k_shape[1]}"
  return None


@functools.cache
def _say(name: str, reason: str, level: int) -> None:
  """Logs a choice, once for each reason."""
  text = "range attention by %s (%s)"
  logging.getLogger(__name__).log(level, text, name, reason)
