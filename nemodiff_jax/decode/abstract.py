"""A decode as shapes alone: to compile it, for any device, without weights."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from nemodiff_jax.decode.config import DecodeConfig, RowSettings
from nemodiff_jax.decode.log import Log, new_log
from nemodiff_jax.decode.rows import (
  cache_capacity,
  make_decoder,
  make_rows,
)
from nemodiff_jax.decode.state import Decoder, DecodeState, Weights, new_state
from nemodiff_jax.nn.cache import init_cache, own_pages
from nemodiff_jax.nn.model import Transformer, abstract_params
from nemodiff_jax.nn.sharding import HEADS, spec


def abstract_decode(
  module: Transformer,
  config: DecodeConfig,
  *,
  batch: int = 1,
  prompt: int = 1,
  max_new_tokens: int = 128,
  row: RowSettings | None = None,
  scheme: str = "none",
  attention: str | None = None,
) -> tuple[Decoder, Weights, DecodeState, Log]:
  """What `driver.run` takes after a prefill, of ShapeDtypeStructs.

  Args:
    module: the model; its mesh, if any, splits parameters and cache.
    config: how it decodes.
    batch: rows.
    prompt: tokens of the longest prompt.
    max_new_tokens: of every row.
    row: all that every row asks for; None: a greedy row of max_new_tokens.
    scheme: how the parameters are quantised.
    attention: implementation of range attention; None: chosen.
  """
  row = row or RowSettings(max_new_tokens=max_new_tokens)
  settings = [row] * batch
  decoder = make_decoder(module, config, settings, attention)
  capacity = cache_capacity(module.config, config, prompt, row.max_new_tokens)

  def begin() -> tuple[DecodeState, Log]:
    rows = make_rows(module.config, config, settings)
    table = own_pages(batch, capacity)
    cache = init_cache(module.config, table.size, module.dtype)
    state = new_state(decoder, cache, table, rows, jnp.ones(batch, jnp.int32))
    return state, new_log(decoder, batch, capacity)

  def placed(x: Any, split: P) -> Any:
    if module.mesh is None:
      return x
    sharding = NamedSharding(module.mesh, split)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  state, log = jax.eval_shape(begin)
  cache = jax.tree.map(lambda x: placed(x, HEADS), state.cache)
  state, log = jax.tree.map(lambda x: placed(x, P()), (state, log))
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: placed(x, spec(tuple(k.key for k in path))),
    abstract_params(module.config, module.dtype, scheme),
  )
  state = dataclasses.replace(state, cache=cache)
  return decoder, Weights(params), state, log
