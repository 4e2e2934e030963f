"""Compares two checkpoints, whatever their layouts."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from checkpoints_convert.hf_folder import bytes_of
from checkpoints_convert.lazy import places
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import Checkpoint
from nemodiff_jax.io.names import released_name
from nemodiff_jax.io.orbax import whole_manifest
from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.nn.lora import LoraLayer
from nemodiff_jax.nn.model import Params, Transformer, head
from pallas_kernels.range_attention import range_attention


def compare(a: Checkpoint, b: Checkpoint, prompt: str | None) -> Iterator[str]:
  """Yields what differs, nothing if all agree; prints what was compared.

  Names, shapes, dtypes and values of all tensors, each folder against its own
  checksums, the configs, and, if there is a prompt and all of this agrees, the
  logits of the prompt.

  Raises:
    UserError: a folder that cannot be read.
  """
  found = compare_tensors(a, b)
  if a.config != b.config:
    found.append("config: " + _changes(a.config, b.config))
  yield from found
  if prompt is not None and not found:
    yield from compare_logits(a, b, prompt)


def compare_tensors(a: Checkpoint, b: Checkpoint) -> list[str]:
  """What differs between the tensors of two checkpoints; [] if nothing.

  Raises:
    UserError: a folder that cannot be read.
  """
  sides = [_Side(a), _Side(b)]
  found = []
  for name in dict.fromkeys(n for side in sides for n in side.names):
    if not all(name in side.names for side in sides):
      there = next(s for s in sides if name in s.names)
      found.append(f"{name}: only in {there.folder}")
      continue
    kinds = [side.kind(name) for side in sides]
    digests = [side.digest(name) for side in sides]  # One in memory at a time.
    if kinds[0] != kinds[1]:
      found.append(f"{name}: {kinds[0]} and {kinds[1]}")
    elif digests[0] != digests[1]:
      values = [side.read(name) for side in sides]
      found.append(f"{name}: {_first_difference(*values)}")
    for side, digest in zip(sides, digests, strict=True):
      if side.sums.get(name, digest) != digest:
        found.append(f"{name}: {side.folder} was changed since it was written")
  count = len(sides[0].names)
  print(f"{count} tensors compared; checked against their own checksums:")
  for side in sides:
    print(f"  {side.folder}: {len(side.sums) or 'it has none'}")
  return found


def compare_logits(a: Checkpoint, b: Checkpoint, prompt: str) -> list[str]:
  """The largest difference of the logits of a prompt, if there is any.

  Raises:
    UserError: a prompt without tokens.
  """
  if a.tokenizer is not None:
    ids = a.tokenizer.encode(prompt)
  else:
    ids = [i % a.config.vocab_size for i in range(8)]
  if not ids:
    raise UserError(
      f"the prompt should be of one token at least, got {prompt!r}."
    )
  x, y = (prompt_logits(c.config, c.load_params(), ids) for c in (a, b))
  largest = float(np.abs(x - y).max())
  print(f"logits of {len(ids)} tokens: largest difference {largest:g}")
  return [f"logits: by up to {largest:g}"] if largest else []


def prompt_logits(
  config: ModelConfig,
  params: Params,
  ids: Sequence[int],
  lora: tuple[LoraLayer, ...] | None = None,
) -> Float[np.ndarray, "T V"]:
  """Float32 logits of one causal pass."""
  module = Transformer(config)
  positions = jnp.arange(len(ids), dtype=jnp.int32)[None]
  tokens = jnp.asarray(ids, jnp.int32)[None]

  def attend(q, k, v, memory):
    return range_attention(q, k, v, positions + 1)[0], memory

  @jax.jit
  def run(params, lora):
    none = (None,) * config.num_layers
    out: Any = module.apply(
      {"params": params}, tokens, positions, attend, none, lora
    )
    return head(module, params, out[0])

  return np.asarray(run(params, lora)[0])


class _Side:
  """One of the two folders, its tensors by their released names."""

  def __init__(self, opened: Checkpoint):
    self.folder = opened.folder
    self._tensors, _ = opened.match_tensors()
    self.names = {released_name(n): n for n in self._tensors.files}
    manifest = whole_manifest(opened.folder, self._tensors.files)
    self.sums = {released_name(n): t["sha256"] for n, t in manifest.items()}

  def kind(self, name: str) -> str:
    own = self.names[name]
    return f"{list(self._tensors.shape(own))} {self._tensors.dtype(own)}"

  def digest(self, name: str) -> str:
    return hashlib.sha256(bytes_of(self.read(name))).hexdigest()

  def read(self, name: str) -> np.ndarray:
    ((_, value),) = self._tensors.read([self.names[name]])
    return value


def _first_difference(x: np.ndarray, y: np.ndarray) -> str:
  """How many values differ, and the first of them."""
  x, y = np.atleast_1d(x), np.atleast_1d(y)

  def differ(rows: slice) -> np.ndarray:
    a, b = x[rows].astype(np.float32), y[rows].astype(np.float32)
    return (a != b) & ~(np.isnan(a) & np.isnan(b))

  count, at = places(x.shape, differ)
  if not count:
    return "bytes differ, values do not"
  a, b = np.float32(x[at]), np.float32(y[at])
  return f"{count} of {x.size} values, first at {[*at]}: {a:g} and {b:g}"


def _changes(a: Any, b: Any) -> str:
  fields = [f for f in vars(a) if getattr(a, f) != getattr(b, f)]
  return ", ".join(
    f"{f} {getattr(a, f)!r} and {getattr(b, f)!r}" for f in fields
  )
