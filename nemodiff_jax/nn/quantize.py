"""Weight-only int8: one scale per output channel, applied after the product.

    scale[o] = max_i |w[i, o]| / 127        kernel = round(w / scale)
    x @ w    ~ (x @ kernel) * scale

Since the scale stands outside the sum, XLA reads int8 and nothing else: no
kernel of full precision is ever made. What is quantised is every `Linear`, the
diffusion head included. The embedding table is not (a lookup reads one row of
it), and so a head tied to it is not either; nor are norms and the drafter.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from nemodiff_jax.errors import UserError

SCHEMES = ("none", "int8")
MARK = {"quant_method": "nemodiff_int8"}  # quantization_config in config.json.
_LARGEST = 127


def check_scheme(scheme: str) -> None:
  """Raises a UserError unless `scheme` is one of SCHEMES."""
  if scheme not in SCHEMES:
    raise UserError(f"quantize should be one of {SCHEMES}, got {scheme!r}.")


def quantize_kernel(w: Float[Array, "I O"]) -> dict[str, Array]:
  """The parameters of a quantised `Linear` with the weights w.

  Returns:
    kernel, int8 [I, O] in -127..127, and scale, float32 [O]; a channel of
    zeros has scale 1.
  """
  w = w.astype(jnp.float32)
  peak = jnp.abs(w).max(0)
  scale = jnp.where(peak > 0, peak / _LARGEST, 1.0)
  kernel = jnp.round(w / scale[None])
  return {"kernel": kernel.astype(jnp.int8), "scale": scale}


def quantize(params: dict[str, Any]) -> dict[str, Any]:
  """Quantises every `Linear` of a parameter tree; the rest is passed on."""
  if set(params) == {"kernel"}:
    return quantize_kernel(params["kernel"])
  return {
    name: quantize(node) if isinstance(node, dict) else node
    for name, node in params.items()
  }


def scheme_of(params: dict[str, Any]) -> str:
  """How a model's parameters are quantised, one of SCHEMES."""
  return "int8" if "scale" in params["layers_0"]["mlp"]["up_proj"] else "none"


def stored_scheme(config: dict[str, Any]) -> str:
  """How the tensors of a folder are quantised, by its config.json."""
  return "int8" if config.get("quantization_config") == MARK else "none"
