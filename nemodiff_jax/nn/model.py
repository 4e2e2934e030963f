"""The decoder stack: tokens in, hidden states out, one attention for all."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from nemodiff_jax.nn.attention import Attend, Attention, CachedPass
from nemodiff_jax.nn.cache import KVCache
from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.nn.layers import Linear, RMSNorm, Rotary, SwiGLU, rotary
from nemodiff_jax.nn.lora import LoraLayer
from nemodiff_jax.nn.quantize import quantize
from nemodiff_jax.nn.sharding import gather, heads_apart
from pallas_kernels.range_attention import matmul_precision

Params = dict[str, Any]


class Block(nn.Module):
  """Pre-norm attention and SwiGLU, each with a residual."""

  config: ModelConfig

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    rope: Rotary,
    attend: Attend,
    memory: Any,
    lora: LoraLayer | None = None,
    lora_rows: Bool[Array, "B"] | Bool[Array, "B T"] | None = None,
  ) -> tuple[Float[Array, "B T D"], Any]:
    """Returns the new hidden states and the layer's new memory."""
    c = self.config
    norm = lambda name: RMSNorm(c.rms_norm_eps, name=name)
    y, memory = Attention(c, name="self_attn")(
      norm("input_layernorm")(x), rope, attend, memory, lora, lora_rows
    )
    x = x + y
    y = SwiGLU(c.intermediate_size, name="mlp")(
      norm("post_attention_layernorm")(x)
    )
    return x + y, memory


class Transformer(nn.Module):
  """The Ministral-3 decoder with an untied diffusion head.

  Logits of a causal pass at position p predict p + 1; logits of a mask at
  position p in a bidirectional pass predict p.

  Attributes:
    config: the architecture.
    dtype: of embedding, activations and cache.
    mesh: the devices that share the heads; None: one device.
  """

  config: ModelConfig
  dtype: jnp.dtype = jnp.float32
  mesh: Mesh | None = None

  def setup(self):
    """Declares the parameters."""
    c = self.config
    self.embed_tokens = nn.Embed(
      c.vocab_size,
      c.hidden_size,
      dtype=self.dtype,
      param_dtype=self.dtype,
      embedding_init=nn.initializers.normal(0.02),
    )
    self.layers = [Block(c) for _ in range(c.num_layers)]
    self.norm = RMSNorm(c.rms_norm_eps)
    if not c.tie_embeddings:
      self.diffusion_head = Linear(c.vocab_size, out_dtype=jnp.float32)

  def __call__(
    self,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    attend: Attend,
    memory: tuple[Any, ...],
    lora: tuple[LoraLayer, ...] | None = None,
    lora_rows: Bool[Array, "B"] | None = None,
  ) -> tuple[Float[Array, "B T D"], tuple[Any, ...]]:
    """Runs every layer; `memory` holds one entry per layer for `attend`."""
    x = gather(self.embed_tokens(tokens), self.mesh)
    rope = rotary(self.config, positions)
    kept = []
    for i, layer in enumerate(self.layers):
      lora_i = None if lora is None else lora[i]
      x, new = layer(x, rope, attend, memory[i], lora_i, lora_rows)
      kept.append(new)
    return self.norm(x), tuple(kept)

  def logits(self, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
    """Float32 logits of hidden states."""
    hidden = gather(hidden, self.mesh)  # Else a tied table's split spreads.
    if self.config.tie_embeddings:
      table = self.embed_tokens.embedding
      return jnp.einsum(
        "...d,vd->...v",
        hidden,
        table,
        precision=matmul_precision(hidden.dtype),
        preferred_element_type=jnp.float32,
      )
    return self.diffusion_head(hidden)

  def init_all(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
    """A pass without attention that touches every parameter, for `init`."""
    attend = lambda q, k, v, memory: (q, memory)
    none = (None,) * self.config.num_layers
    return self.logits(self(tokens, tokens, attend, none)[0])


def init_params(config: ModelConfig, key: Array, dtype=jnp.float32) -> Params:
  """Random parameters."""
  module = Transformer(config, dtype)
  tokens = jnp.zeros((1, 1), jnp.int32)
  return dict(module.init(key, tokens, method="init_all")["params"])


def abstract_params(
  config: ModelConfig, dtype=jnp.float32, scheme: str = "none"
) -> Params:
  """Shapes and dtypes of the parameters of a model of any size."""

  def build(key):
    params = init_params(config, key, dtype)
    return quantize(params) if scheme == "int8" else params

  return jax.eval_shape(build, jax.random.key(0))


def cached_pass(
  module: Transformer,
  params: Params,
  tokens: Int[Array, "B T"],
  where: CachedPass,
  cache: KVCache,
  lora: tuple[LoraLayer, ...] | None = None,
  lora_rows: Bool[Array, "B"] | None = None,
) -> tuple[Float[Array, "B T D"], KVCache]:
  """Writes the tokens' keys and values, attends, and returns hidden states."""
  attend, mesh = where.attend, module.mesh
  if mesh is not None:
    attend = heads_apart(CachedPass.attend, where, mesh)
  hidden, memory = module.apply(
    {"params": params},
    tokens,
    where.positions,
    attend,
    tuple(zip(cache.k, cache.v, strict=True)),
    lora,
    lora_rows,
  )
  k, v = zip(*memory, strict=True)
  return hidden, KVCache(k=k, v=v)


def head(
  module: Transformer, params: Params, hidden: Float[Array, "*rows D"]
) -> Float[Array, "*rows V"]:
  """Float32 logits."""
  logits: Any = module.apply({"params": params}, hidden, method="logits")
  return gather(logits, module.mesh)


def count_params(params: Params) -> int:
  """Number of scalars, of arrays or of shapes."""
  return sum(x.size for x in jax.tree.leaves(params))
