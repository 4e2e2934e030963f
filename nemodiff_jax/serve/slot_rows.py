"""Rows of the slots of an engine: taken, put, moved. Pure functions."""

import functools
from dataclasses import replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding
from jaxtyping import Array, Int

from nemodiff_jax.decode.state import Decoder, DecodeState, Rows, new_state
from nemodiff_jax.nn.cache import KVCache
from nemodiff_jax.nn.sharding import ALL

T = TypeVar("T")  # A tree whose leaves all begin with the slot.
NO_CACHE = KVCache((), ())  # Of a state whose cache is elsewhere.


def empty_slots(decoder: Decoder, size: int, rows: Rows) -> DecodeState:
  """Slots that hold no row, with settings of the shapes of `rows` [1]."""
  rows = jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype), rows)
  table = jnp.zeros((size, 1), jnp.int32)
  lengths = jnp.zeros(size, jnp.int32)
  return replace(
    new_state(decoder, NO_CACHE, table, rows, lengths), table=table
  )


def settle(decoder: Decoder, tree: Any, spec=ALL) -> Any:
  """The arrays where every program expects them, on several devices."""
  mesh = decoder.module.mesh
  if mesh is None:
    return tree
  return lax.with_sharding_constraint(tree, NamedSharding(mesh, spec))


@jax.jit
def take(slots: T, slot: Int[Array, ""]) -> T:
  """The row in a slot, [1]."""
  return jax.tree.map(lambda x: x[slot][None], slots)


@functools.partial(jax.jit, donate_argnames="slots")
def put(slots: T, row: T, slot: Int[Array, ""]) -> T:
  """Puts a row [1] into a slot."""
  return put_row(slots, row, slot)


@functools.partial(jax.jit, static_argnames="decoder")
def redraft(decoder: Decoder, row: DecodeState) -> DecodeState:
  """The row with its draft, of whatever width, still to be made."""
  token = row.block.token.at[:, 1:].set(decoder.mask_id)
  block = replace(row.block, token=token)
  return replace(row, block=block, phase=jnp.zeros_like(row.phase))


@functools.partial(jax.jit, donate_argnames="slots")
def move(slots: T, start: Int[Array, "n"], stop: Int[Array, "n"]) -> T:
  """Rows of slots `start` go to slots `stop`; a stop behind all: none."""
  return jax.tree.map(lambda x: x.at[stop].set(x[start], mode="drop"), slots)


def put_row(slots: T, row: T, slot: Array) -> T:
  """As `put`, inside of another program."""
  return jax.tree.map(lambda x, y: x.at[slot].set(y[0]), slots, row)
