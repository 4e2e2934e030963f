"""An engine for a loaded model: how many pages it may have, and which rows."""

from collections.abc import Sequence

import jax.numpy as jnp

from nemodiff_jax.decode.config import MAX_LOGPROBS, DecodeConfig, RowSettings
from nemodiff_jax.decode.memory import free_memory
from nemodiff_jax.decode.modes import MODES
from nemodiff_jax.decode.prefill import bucket
from nemodiff_jax.decode.state import Decoder
from nemodiff_jax.errors import UserError
from nemodiff_jax.model import Model
from nemodiff_jax.nn.cache import pages_for
from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.serve.cache import Cache, new_cache
from nemodiff_jax.serve.engine import STOP_IDS, Engine
from nemodiff_jax.serve.widths import Widths
from pallas_kernels.range_attention import PAGE

MEMORY_FRACTION = 0.8  # Of what is free, for the pool; the rest is for passes.


def open_engine(
  model: Model,
  config: DecodeConfig,
  *,
  rows: int,
  max_length: int | None = None,
  settings: Sequence[RowSettings] | None = None,
  cache: Cache | None = None,
  queue: int = 1024,
) -> Engine:
  """An engine whose rows decode as `config` says.

  Args:
    model: from `load`.
    config: how to decode.
    rows: that run at once.
    max_length: of prompt + max_new_tokens; None: the model's.
    settings: of all rows that will come, so that nothing is kept ready for
      what none of them asks; None: any may come.
    cache: its pages; None: as `open_cache` makes them.
    queue: requests that may wait.

  Raises:
    UserError: memory leaves no page.
  """
  length = longest(model.config, max_length)
  keep, stops = MAX_LOGPROBS, STOP_IDS
  if settings is not None:
    asked = [s.logprobs for s in settings if s.logprobs is not None]
    keep = max(asked, default=None)
    own = max((len(s.stop_token_ids) for s in settings), default=0)
    stops = bucket(own + len(model.config.eos_ids), STOP_IDS)
  decoder = Decoder(
    module=model.module,
    mode=MODES[config.mode],
    block=config.slots,
    sampling=None,
    logprobs=keep,
    attention=model.attention,
  )
  return Engine(
    decoder,
    model.weights,
    config,
    cache or open_cache(model, rows, length + config.slots),
    rows=rows,
    max_length=length,
    stop_ids=stops,
    queue=queue,
    widths=Widths(config.widths) if config.widths else None,
    tokenizer=model.tokenizer,
  )


def open_cache(
  model: Model,
  rows: int,
  positions: int,
  memory_fraction: float = MEMORY_FRACTION,
) -> Cache:
  """Pages for so many rows of so many positions, as far as memory has them.

  Args:
    model: from `load`.
    rows: that run at once.
    positions: of each, at most.
    memory_fraction: of the memory that is free, at most.

  Raises:
    UserError: memory leaves no page.
  """
  pages = rows * pages_for(positions)
  if (free := free_memory()) is not None:
    pages = min(pages, int(free * memory_fraction) // _page_bytes(model))
  if pages < 1:
    raise UserError(
      "memory leaves no room for a page of the cache; use bfloat16 or a"
      " smaller model.",
      "memory",
    )
  return new_cache(model.module, pages)


def longest(model: ModelConfig, max_length: int | None) -> int:
  """Positions of a request at most; None: as many as the model has."""
  return min(max_length or model.max_positions, model.max_positions)


def _page_bytes(model: Model) -> int:
  """Bytes of a page in all layers, on each device."""
  c, mesh = model.config, model.module.mesh
  item = jnp.dtype(model.module.dtype).itemsize
  size = 2 * c.num_layers * c.num_kv_heads * c.head_dim * item * PAGE
  return size // (mesh.size if mesh else 1)
