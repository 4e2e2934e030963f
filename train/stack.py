"""The layers of the model, stacked and scanned: what training runs.

Decoding unrolls the layers and checkpoints hold them one by one; here each
parameter of a layer has a leading axis L, so that one compiled layer serves
all of them and rematerialises its activations in the backward pass; a small
model that keeps everything unrolls them.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from nemodiff_jax.nn.attention import Attend
from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.nn.layers import Linear, RMSNorm, linear, rotary
from nemodiff_jax.nn.lora import LoraLayer
from nemodiff_jax.nn.model import Block, Params
from nemodiff_jax.nn.sharding import SPLIT
from pallas_kernels.range_attention import matmul_precision
from train.mesh import INSIDE, ROWS, STREAM, by_rows, moved, spread, whole

HEAD = "diffusion_head"
# By how a matrix is split: how the gradient of its product's input leaves, how
# the output leaves, and how the output's gradient is read.
_SIDES = {
  ("fsdp", "tensor"): (STREAM, INSIDE, INSIDE),
  ("tensor", "fsdp"): (INSIDE, STREAM, ROWS),
}
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
    dtype: of the computation; matrices are cast to it before they are
      gathered, and their gradients are summed in their own dtype.
    remat: what the backward pass keeps, a key of REMAT: 'none' keeps every
      activation (and unrolls the layers, so that each is kept where it was
      made), 'dots' the matrix products, 'full' only a layer's input.
    mesh: of `train.mesh`; None: one device.
  """

  config: ModelConfig
  dtype: jnp.dtype = jnp.float32
  remat: str = "full"
  mesh: Mesh | None = None


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
  x = _embed(stack, params["embed_tokens"]["embedding"], tokens)

  def layer(x, given):
    weights, lora = given
    with nn.intercept_methods(functools.partial(_from_masters, stack)):
      x, _ = Block(config).apply(
        {"params": weights},
        spread(stack.mesh, x, STREAM),
        rope,
        attend,
        None,
        None if lora is None else _for_each_row(stack, lora, x.shape[0]),
        None if drafter is None else drafter.on,
      )
    return spread(stack.mesh, x, STREAM), None

  policy = REMAT[stack.remat]
  if policy is not None:
    layer = jax.checkpoint(layer, policy=policy, prevent_cse=False)
  lora = None if drafter is None else drafter.layers
  given = (params["layers"], lora)
  x, _ = lax.scan(layer, x, given, unroll=policy is None)
  with nn.intercept_methods(functools.partial(_from_masters, stack)):
    norm = RMSNorm(config.rms_norm_eps, name="norm")
    hidden: Any = norm.apply({"params": params["norm"]}, x)
  return hidden


def _embed(stack: Stack, table: Array, tokens: Array) -> Array:
  """Rows of the table, looked up by each device in its part of the width."""
  width = ("fsdp", "tensor")
  table = spread(stack.mesh, table, P(None, width))
  x = spread(stack.mesh, table[tokens], P("data", None, width))
  x = spread(stack.mesh, x.astype(stack.dtype), P("data", None, width))
  return spread(stack.mesh, spread(stack.mesh, x, INSIDE), STREAM)


def _from_masters(stack: Stack, call, args, kwargs, context):
  """Runs a module of a layer from float32 parameters; see `product`.

  What a norm gives is gathered along the positions, once for all products.
  """
  module, (x, *_) = context.module, args
  if isinstance(module, Linear):
    kernel = module.get_variable("params", "kernel")
    return product(stack.mesh, module.name, x, kernel)
  if not isinstance(module, RMSNorm) or module.name is None:
    return call(*args, **kwargs)
  weight = module.get_variable("params", "weight")
  if weight.dtype == x.dtype:
    y = call(*args, **kwargs)
  else:
    plain = {"params": {"weight": jnp.ones_like(weight, x.dtype)}}
    y: Any = RMSNorm(module.eps).apply(plain, x)  # Comes here, unnamed.
    wide = jnp.expand_dims(weight, (0, 1)) * y.astype(weight.dtype)
    y = wide.astype(x.dtype)
  return moved(stack.mesh, y, STREAM, ROWS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product(
  mesh: Mesh | None,
  name: str,
  x: Float[Array, "B T I"],
  kernel: Float[Array, "I O"],
) -> Float[Array, "B T O"]:
  """X @ kernel in the dtype of x; the kernel is gathered in it.

  The gradient of the kernel is summed over rows and devices in the kernel's
  own dtype, and lies as the kernel does.

  Args:
    mesh: of the run; None: one device.
    name: of the kernel in `nemodiff_jax.nn.sharding.SPLIT`.
    x: activations.
    kernel: a master.
  """
  return _product_forward(mesh, name, x, kernel)[0]


def _product_forward(mesh, name, x, kernel):
  _, leaves, _ = _SIDES[SPLIT[name]]
  gathered = whole(mesh, name, kernel.astype(x.dtype))
  out = spread(mesh, linear(x, gathered), leaves)
  return out, (x, gathered, jnp.zeros((), kernel.dtype))


def _product_backward(mesh, name, saved, d_out):
  comes, leaves, read = _SIDES[SPLIT[name]]
  x, kernel, like = saved
  d_out = moved(mesh, d_out, leaves, read)
  d_x = spread(mesh, linear(d_out, kernel.T), comes)
  # Copies of the model sum for themselves at first: what crosses between them
  # then is a device's part of the sum and not all of it.
  copies = 1 if mesh is None else mesh.shape["data"]
  parts = kernel_gradients(copies, x, d_out, like.dtype)
  parts = spread(mesh, parts, P("data", *SPLIT[name]))
  return d_x, spread(mesh, parts.sum(0), P(*SPLIT[name]))


product.defvjp(_product_forward, _product_backward)


def kernel_gradients(
  parts: int,
  x: Float[Array, "B T I"],
  d_out: Float[Array, "B T O"],
  dtype: jnp.dtype,
) -> Float[Array, "parts I O"]:
  """Gradients of a kernel by each part of the rows, summed in `dtype`."""
  cut = lambda a: a.reshape(parts, -1, *a.shape[1:])
  return jnp.einsum(
    "nbti,nbto->nio",
    cut(x),
    cut(d_out),
    precision=matmul_precision(x.dtype),
    preferred_element_type=dtype,
  )


def _for_each_row(stack: Stack, lora: LoraLayer, rows: int) -> LoraLayer:
  """A copy of the LoRA for each row: their gradients are added in float32."""

  def copy(x: Array) -> Array:
    wide = jnp.broadcast_to(x[None], (rows, *x.shape))
    return by_rows(stack.mesh, wide.astype(stack.dtype))

  return jax.tree.map(copy, lora)


def head_kernel(config: ModelConfig, params: Params) -> Float[Array, "D V"]:
  """The matrix from hidden states to logits."""
  if config.tie_embeddings:
    return params["embed_tokens"]["embedding"].T
  return params[HEAD]["kernel"]


def gathered_head(stack: Stack, params: Params) -> Float[Array, "D V"]:
  """The same in the computation's dtype, gathered over fsdp; not learned."""
  kernel = lax.stop_gradient(head_kernel(stack.config, params))
  return whole(stack.mesh, HEAD, kernel.astype(stack.dtype))
