"""Whole texts through the model at once: no cache, nothing decoded."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from nemodiff_jax.api import Model
from nemodiff_jax.errors import UserError
from nemodiff_jax.nn.model import Params, Transformer, head
from pallas_kernels.range_attention import PAGE, range_attention

_READ = 64  # Positions of a row whose logits exist at a time.


@dataclasses.dataclass(frozen=True)
class Text:
  """One row: tokens, how far each one sees, and what is read of it.

  Attributes:
    tokens: ids.
    open_from: tokens from here on see the whole row; those before see
      themselves and what stands before them.
    at: positions whose logits are read.
    target: the token whose log-probability is read at each of them.
  """

  tokens: Sequence[int]
  open_from: int
  at: Sequence[int]
  target: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Read:
  """What was read of one row, at each of its positions.

  Attributes:
    logprob: of the targets, of the distribution without the mask id.
    token: the likeliest token but for the mask id.
    confidence: softmax(logits) at that token, the mask id counted.
  """

  logprob: np.ndarray
  token: np.ndarray
  confidence: np.ndarray


def read(model: Model, texts: Sequence[Text], batch_size: int) -> list[Read]:
  """Reads texts, `batch_size` rows at a time; batches change nothing.

  Raises:
    UserError: the model is shared by several devices.
  """
  if model.module.mesh is not None:
    raise UserError("likelihoods are computed on one device; leave out --mesh.")
  found: list[Read] = []
  for i in range(0, len(texts), batch_size):
    found += _read_batch(model, texts[i : i + batch_size], batch_size)
  return found


def _read_batch(model: Model, texts: Sequence[Text], size: int) -> list[Read]:
  length = _up(max(len(t.tokens) for t in texts), PAGE)
  count = _up(max(len(t.at) for t in texts), _READ)
  tokens, ends = (np.zeros((size, length), np.int32) for _ in range(2))
  at, target = (np.zeros((size, count), np.int32) for _ in range(2))
  for row, t in enumerate(texts):
    n = len(t.tokens)
    tokens[row, :n], ends[row, :n] = t.tokens, np.arange(1, n + 1)
    ends[row, t.open_from : n] = n
    at[row, : len(t.at)], target[row, : len(t.at)] = t.at, t.target
  mask = -1 if model.config.mask_id is None else model.config.mask_id
  out = jax.device_get(
    _forward(
      model.module, model.attention, mask, model.weights.params,
      tokens, ends, at, target,
    )
  )  # fmt: skip
  return [
    Read(*(x[row, : len(t.at)] for x in out)) for row, t in enumerate(texts)
  ]


@functools.partial(jax.jit, static_argnames=("module", "attention", "mask"))
def _forward(
  module: Transformer,
  attention: str | None,
  mask: int,
  params: Params,
  tokens: Int[Array, "B T"],
  ends: Int[Array, "B T"],
  at: Int[Array, "B R"],
  target: Int[Array, "B R"],
) -> tuple[Array, Array, Array]:
  """Log-probability, likeliest token and its confidence, each [B, R]."""

  def attend(q, k, v, memory):
    return range_attention(q, k, v, ends, implementation=attention)[0], memory

  positions = jnp.broadcast_to(
    jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape
  )
  none = (None,) * module.config.num_layers
  hidden, _ = module.apply({"params": params}, tokens, positions, attend, none)
  hidden = jnp.take_along_axis(hidden, at[..., None], 1)

  def some(part):
    rows, wanted = part
    logits = head(module, params, rows)
    ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, None]
    kept = jnp.where(ids == mask, -jnp.inf, logits)
    pick = lambda x, i: jnp.take_along_axis(x, i[..., None], -1)[..., 0]
    token = jnp.argmax(kept, -1).astype(jnp.int32)
    return (
      pick(kept, wanted) - jax.nn.logsumexp(kept, -1),
      token,
      jnp.exp(pick(logits, token) - jax.nn.logsumexp(logits, -1)),
    )

  def cut(x):  # [B, R, ...] -> [R / _READ, B, _READ, ...]
    parts = x.reshape(x.shape[0], -1, _READ, *x.shape[2:])
    return jnp.moveaxis(parts, 1, 0)

  out = jax.lax.map(some, (cut(hidden), cut(target)))
  join = lambda x: jnp.moveaxis(x, 0, 1).reshape(at.shape)
  logprob, token, sure = jax.tree.map(join, out)
  return logprob, token, sure


def _up(count: int, multiple: int) -> int:
  """The next power of two times `multiple`: few programs for many lengths."""
  size = multiple
  while size < count:
    size *= 2
  return size
