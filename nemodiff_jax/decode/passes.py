"""The pass that the modes share, and the blocks that go through it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nemodiff_jax.decode.state import (
  Decoder,
  DecodeState,
  Picked,
  Weights,
  unpicked,
)
from nemodiff_jax.nn.attention import CachedPass
from nemodiff_jax.nn.lora import LoraLayer
from nemodiff_jax.nn.model import cached_pass


def block_pass(
  decoder: Decoder,
  weights: Weights,
  state: DecodeState,
  causal: Bool[Array, "B"],
  lora: tuple[LoraLayer, ...] | None = None,
) -> tuple[Float[Array, "B C D"], DecodeState]:
  """Hidden states of each row's block behind its committed prefix.

  A causal row sees, from slot i, the prefix and slots 0..i; any other row
  sees the whole block. `lora` works in the rows that are not causal.
  Rows that have ended see and write nothing. Raises nfe by one.
  """
  slots = jnp.arange(state.block.token.shape[1], dtype=jnp.int32)[None]
  positions = state.lengths[:, None] + slots
  whole = jnp.broadcast_to(positions[:, -1:], positions.shape)
  k_end = jnp.where(causal[:, None], positions, whole) + 1
  on = state.running[:, None]
  where = CachedPass(
    positions=positions,
    slots=jnp.where(on, positions, state.capacity),
    k_end=jnp.where(on, k_end, 0),
    table=state.table,
    attention=decoder.attention,
  )
  hidden, cache = cached_pass(
    decoder.module,
    weights.params,
    state.block.token,
    where,
    state.cache,
    lora,
    ~causal,
  )
  return hidden, replace(state, cache=cache, nfe=count_pass(state))


def count_pass(state: DecodeState) -> Array:
  """The rows' nfe [B], one higher where a row runs."""
  return state.nfe + state.running.astype(jnp.int32)


def fresh_block(decoder: Decoder, first: Picked) -> Picked:
  """[first, mask, mask, ...] of first [B, 1]."""
  batch = first.token.shape[0]
  masks = unpicked(decoder, batch, decoder.block - 1, decoder.mask_id)
  return jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), first, masks)


def select(mask: Bool[Array, "B T"], a: Picked, b: Picked) -> Picked:
  """A where the mask is set, b elsewhere."""

  def one(x, y):
    wide = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
    return jnp.where(wide, x, y)

  return jax.tree.map(one, a, b)
