"""An engine for a loaded model: how many pages it may have, and which rows."""

import jax.numpy as jnp

from nemodiff_jax.api import Model
from nemodiff_jax.decode.config import MAX_LOGPROBS, DecodeConfig
from nemodiff_jax.decode.memory import free_memory
from nemodiff_jax.decode.modes import MODES
from nemodiff_jax.decode.state import Decoder
from nemodiff_jax.errors import UserError
from nemodiff_jax.nn.cache import pages_for
from nemodiff_jax.serve.engine import Engine
from pallas_kernels.range_attention import PAGE

MEMORY_FRACTION = 0.8  # Of what is free, for the pool; the rest is for passes.


def open_engine(
  model: Model,
  config: DecodeConfig,
  *,
  rows: int,
  max_length: int | None = None,
  pages: int | None = None,
  logprobs: bool = True,
) -> Engine:
  """An engine whose rows decode as `config` says.

  Args:
    model: from `load`.
    config: how to decode.
    rows: that run at once.
    max_length: of prompt + max_new_tokens; None: the model's.
    pages: of the cache pool; None: what `rows` of max_length need, or what
      memory leaves.
    logprobs: whether rows may ask for log-probabilities.

  Raises:
    UserError: memory leaves no page.
  """
  length = min(max_length or model.config.max_positions,
               model.config.max_positions)  # fmt: skip
  if pages is None:
    pages = rows * pages_for(length + config.slots)
    if (free := free_memory()) is not None:
      pages = min(pages, int(free * MEMORY_FRACTION) // _page_bytes(model))
  if pages < 1:
    raise UserError(
      "memory leaves no room for a page of the cache; use bfloat16 or a"
      " smaller model.",
      "memory",
    )
  decoder = Decoder(
    module=model.module,
    mode=MODES[config.mode],
    block=config.slots,
    sampling=None,
    logprobs=MAX_LOGPROBS if logprobs else None,
    attention=model.attention,
  )
  return Engine(
    decoder,
    model.weights,
    config,
    rows=rows,
    pages=pages,
    max_length=length,
    tokenizer=model.tokenizer,
  )


def _page_bytes(model: Model) -> int:
  """Bytes of a page in all layers, on each device."""
  c, mesh = model.config, model.module.mesh
  item = jnp.dtype(model.module.dtype).itemsize
  size = 2 * c.num_layers * c.num_kv_heads * c.head_dim * item * PAGE
  return size // (mesh.size if mesh else 1)
