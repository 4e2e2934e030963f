"""The compiled decode loop of a released size, as shapes or on a device."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from nemodiff_jax.decode.config import RowSettings, decode_config
from nemodiff_jax.decode.log import Log, new_log
from nemodiff_jax.decode.modes import MODES
from nemodiff_jax.decode.passes import fresh_block
from nemodiff_jax.decode.rows import make_rows
from nemodiff_jax.decode.state import (
  Decoder,
  DecodeState,
  Picked,
  Weights,
  new_state,
)
from nemodiff_jax.nn.cache import init_cache, own_pages
from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.nn.lora import LoraLayer
from nemodiff_jax.nn.model import Transformer, abstract_params

DRAFTER_RANK = 128


@dataclasses.dataclass(frozen=True)
class Program:
  """One decode loop; `driver.run(decoder, weights, *begun)` is what runs.

  Attributes:
    model: architecture.
    mode: decoding mode.
    batch: rows.
    context: committed positions of each row.
    capacity: positions of the cache.
    new: tokens to generate.
    block: C; None: the mode's default.
    attention: implementation of range attention; None: chosen.
    scheme: how the parameters are quantised.
  """

  model: ModelConfig
  mode: str
  batch: int = 1
  context: int = 3072
  capacity: int = 4096
  new: int = 512
  block: int | None = None
  attention: str | None = None
  scheme: str = "none"

  @functools.cached_property
  def config(self):
    """The run's settings."""
    return decode_config(self.model, self.mode, block_length=self.block)

  @functools.cached_property
  def decoder(self) -> Decoder:
    """The static part."""
    return Decoder(
      module=Transformer(self.model, jnp.bfloat16),
      mode=MODES[self.mode],
      block=self.config.slots,
      attention=self.attention,
    )

  def begun(self) -> tuple[DecodeState, Log]:
    """Rows that have read `context` tokens, with a cache of zeros."""
    decoder, model = self.decoder, self.model
    settings = RowSettings(max_new_tokens=self.new, ignore_eos=True)
    rows = make_rows(model, self.config, [settings] * self.batch)
    table = own_pages(self.batch, self.capacity)
    cache = init_cache(model, table.size, jnp.bfloat16)
    lengths = jnp.full((self.batch,), self.context, jnp.int32)
    state = new_state(decoder, cache, table, rows, lengths)
    block = Picked(jnp.ones((self.batch, decoder.block), jnp.int32))
    if decoder.mode.reveals:
      block = fresh_block(decoder, block.part(slice(1)))
    masked = jnp.full_like(lengths, decoder.block - 1)
    state = dataclasses.replace(state, block=block, masked=masked)
    return state, new_log(decoder, self.batch, self.capacity)

  def weights(self) -> Weights:
    """Shapes of the parameters, and of the drafter for linear_spec."""
    model = self.model
    params = abstract_params(model, jnp.bfloat16, self.scheme)
    if self.mode != "linear_spec":
      return Weights(params)
    wide, rank = model.num_heads * model.head_dim, DRAFTER_RANK
    drafter = jax.eval_shape(
      lambda: LoraLayer(
        jnp.zeros((wide, rank), jnp.bfloat16),
        jnp.zeros((rank, model.hidden_size), jnp.bfloat16),
      )
    )
    return Weights(params, (drafter,) * model.num_layers)


def on_device(shapes):
  """Arrays of these shapes made on the device: normal x 0.02, or int8 noise."""

  def make(key, shape, dtype):
    if jnp.issubdtype(dtype, jnp.integer):
      return jax.random.randint(key, shape, -127, 128, dtype)
    return (jax.random.normal(key, shape, jnp.float32) * 0.02).astype(dtype)

  make = jax.jit(make, static_argnums=(1, 2))
  leaves, tree = jax.tree.flatten(shapes)
  keys = jax.random.split(jax.random.key(0), len(leaves))
  return jax.tree.unflatten(
    tree,
    [make(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)],
  )


def weight_bytes(weights: Weights) -> int:
  """Bytes of parameters that a pass reads: all but the embedding table."""
  params = weights.params
  read = params if "diffusion_head" not in params else dict(params)
  if "diffusion_head" in params:
    read.pop("embed_tokens")
  leaves = jax.tree.leaves((read, weights.lora))
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
