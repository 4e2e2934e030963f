"""The cache of an engine: pages on the device, and who holds them."""

import dataclasses

from nemodiff_jax.nn.cache import KVCache, init_cache
from nemodiff_jax.nn.model import Transformer
from nemodiff_jax.serve.pages import PagePool


@dataclasses.dataclass
class Cache:
  """Engines of one model may share it, each with rows of its own.

  Attributes:
    pages: who holds which page.
    arrays: keys and values; every program takes them and gives them back.
  """

  pages: PagePool
  arrays: KVCache


def new_cache(module: Transformer, pages: int) -> Cache:
  """So many pages of zeros.

  Raises:
    UserError: fewer than one.
  """
  pool = PagePool(pages)
  return Cache(
    pool, init_cache(module.config, pages, module.dtype, module.mesh)
  )
