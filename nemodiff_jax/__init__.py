"""Nemotron-Labs Diffusion language models in JAX: one checkpoint, four modes.

    import nemodiff_jax as nd
    model = nd.load("path/to/checkpoint")
    outputs = nd.generate(model, ["Hello"], mode="linear_spec")

Importing this package imports neither JAX nor a server: names load on use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from nemodiff_jax.api import (
    DecodeOutput,
    Model,
    generate,
    generate_iter,
    load,
  )
  from nemodiff_jax.decode.config import DecodeConfig, RowSettings
  from nemodiff_jax.errors import UserError
  from nemodiff_jax.infilling import InfillOutput, infill
  from nemodiff_jax.nn.config import ModelConfig
  from nemodiff_jax.streams import stream

__version__ = "0.1.0"

_HOME = {
  "DecodeConfig": "nemodiff_jax.decode.config",
  "DecodeOutput": "nemodiff_jax.api",
  "InfillOutput": "nemodiff_jax.infilling",
  "Model": "nemodiff_jax.api",
  "ModelConfig": "nemodiff_jax.nn.config",
  "RowSettings": "nemodiff_jax.decode.config",
  "UserError": "nemodiff_jax.errors",
  "generate": "nemodiff_jax.api",
  "generate_iter": "nemodiff_jax.api",
  "infill": "nemodiff_jax.infilling",
  "load": "nemodiff_jax.api",
  "stream": "nemodiff_jax.streams",
}
__all__ = [
  "DecodeConfig",
  "DecodeOutput",
  "InfillOutput",
  "Model",
  "ModelConfig",
  "RowSettings",
  "UserError",
  "generate",
  "generate_iter",
  "infill",
  "load",
  "stream",
]


def __getattr__(name: str) -> Any:
  if name not in _HOME:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
  """The public names: what is loaded on use is offered all the same."""
  return [*__all__, "__version__"]
