"""The layers of the model, stacked and scanned: what training runs.

Decoding unrolls the layers and checkpoints hold them one by one; here each
parameter of a layer has a leading axis L, so that one compiled layer serves
all of them and rematerialises its activations in the backward pass; a small
model that keeps everything unrolls them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from nemodiff_jax.nn.attention import Attend
from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.nn.layers import RMSNorm, rotary
from nemodiff_jax.nn.lora import LoraLayer
from nemodiff_jax.nn.model import Block, Params

REMAT = {
  "none": None,
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class Stack:
  """How the layers run.

  Attributes:
    config: the model.
    dtype: of the computation; parameters are cast to it layer by layer.
    remat: what the backward pass keeps, a key of REMAT: 'none' keeps every
      activation (and unrolls the layers, so that each is kept where it was
      made), 'dots' the matrix products, 'full' only a layer's input.
  """

  config: ModelConfig
  dtype: jnp.dtype = jnp.float32
  remat: str = "full"

  def cast(self, tree: Params) -> Params:
    """Parameters in the computation's dtype."""
    return jax.tree.map(lambda x: x.astype(self.dtype), tree)


@struct.dataclass
class Drafter:
  """A LoRA for the tokens that draft.

  Attributes:
    layers: A [L, I, R] and B [L, R, D], already scaled.
    on: [B, T] the tokens it is switched on for.
  """

  layers: LoraLayer
  on: Bool[Array, "B T"]


def stack_layers(params: Params, layers: int) -> Params:
  """Per-layer parameters -> one tree 'layers' with a leading axis L."""
  rest = {k: v for k, v in params.items() if not k.startswith("layers_")}
  each = [params[f"layers_{i}"] for i in range(layers)]
  return rest | {"layers": jax.tree.map(lambda *x: jnp.stack(x), *each)}


def unstack_layers(params: Params, layers: int) -> Params:
  """The inverse of `stack_layers`."""
  rest = {k: v for k, v in params.items() if k != "layers"}
  one: Callable[[int], Params] = lambda i: jax.tree.map(
    lambda x: x[i], params["layers"]
  )
  return rest | {f"layers_{i}": one(i) for i in range(layers)}


def run_stack(
  stack: Stack,
  params: Params,
  tokens: Int[Array, "B T"],
  positions: Int[Array, "B T"],
  attend: Attend,
  drafter: Drafter | None = None,
) -> Float[Array, "B T D"]:
  """Hidden states, as `Transformer` gives them, from stacked parameters."""
  config = stack.config
  rope = rotary(config, positions)
  x = params["embed_tokens"]["embedding"][tokens].astype(stack.dtype)

  def layer(x, given):
    weights, lora = given
    x, _ = Block(config).apply(
      {"params": stack.cast(weights)},
      x,
      rope,
      attend,
      None,
      None if lora is None else stack.cast(lora),
      None if drafter is None else drafter.on,
    )
    return x, None

  policy = REMAT[stack.remat]
  if policy is not None:
    layer = jax.checkpoint(layer, policy=policy, prevent_cse=False)
  lora = None if drafter is None else drafter.layers
  given = (params["layers"], lora)
  x, _ = lax.scan(layer, x, given, unroll=policy is None)
  norm = {"params": stack.cast(params["norm"])}
  hidden: Any = RMSNorm(config.rms_norm_eps).apply(norm, x)
  return hidden


def head_kernel(config: ModelConfig, params: Params) -> Float[Array, "D V"]:
  """The matrix from hidden states to logits."""
  if config.tie_embeddings:
    return params["embed_tokens"]["embedding"].T
  return params["diffusion_head"]["kernel"]
