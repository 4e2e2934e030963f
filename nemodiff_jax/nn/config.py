"""Architecture and special ids of a model, checked once; released sizes."""

import dataclasses
import math

from nemodiff_jax.errors import UserError

_MOST = 1e18  # More positions are no number of positions.
MAX_LAYERS = 1000  # More is a damaged file, not a model.


@dataclasses.dataclass(frozen=True)
class RopeConfig:
  """Rotary embedding and query scale (`rope_parameters` of config.json).

  Attributes:
    theta: base of the frequencies.
    factor: YaRN's interpolation factor; None for plain RoPE ('default').
    original_max: positions of the original training, for YaRN and the scale.
    beta_fast: YaRN: rotations above which a frequency is kept.
    beta_slow: YaRN: rotations below which a frequency is divided by factor.
    truncate: YaRN: round the two borders outwards.
    attention_factor: multiplies cos and sin.
    query_scale: beta of the query scale 1 + beta * ln(1 + pos // original_max).
  """

  theta: float
  factor: float | None = None
  original_max: int = 0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  truncate: bool = True
  attention_factor: float = 1.0
  query_scale: float = 0.0

  def __post_init__(self):
    if not 1 < self.theta < math.inf:
      raise UserError(
        f"config.json: rope_theta should be above 1, got {self.theta}."
      )
    for name in ("factor", "beta_fast", "beta_slow", "attention_factor"):
      value = getattr(self, name)
      if value is not None and not 0 < value < math.inf:
        raise UserError(
          f"config.json: rope {name} should be positive, got {value}."
        )
    if not 0 <= self.query_scale < math.inf:
      raise UserError(
        "config.json: llama_4_scaling_beta should be 0 or positive, got"
        f" {self.query_scale}."
      )
    scaled = self.factor is not None or self.query_scale
    if scaled and not 1 <= self.original_max < _MOST:
      raise UserError(
        "config.json: rope_parameters.original_max_position_embeddings should"
        f" be positive with YaRN or a query scale, got {self.original_max}."
      )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Architecture and special ids of one checkpoint.

  Attributes:
    vocab_size: V.
    hidden_size: D.
    intermediate_size: F.
    num_layers: L.
    num_heads: N.
    num_kv_heads: K.
    head_dim: H; N * H need not equal D.
    max_positions: limit on prompt + max_new_tokens.
    rope: rotary embedding.
    rms_norm_eps: added to the mean square.
    tie_embeddings: the head is the transposed embedding.
    block_size: C, the default block length.
    mask_id: id of a slot yet to be filled; None: the checkpoint decodes in
      ar mode only.
    bos_id: id before a text, if any.
    eos_ids: ids that end a text.
  """

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  max_positions: int
  rope: RopeConfig
  rms_norm_eps: float = 1e-5
  tie_embeddings: bool = False
  block_size: int = 32
  mask_id: int | None = None
  bos_id: int | None = None
  eos_ids: tuple[int, ...] = ()

  def __post_init__(self):
    for name in (
      "vocab_size",
      "hidden_size",
      "intermediate_size",
      "num_layers",
      "num_heads",
      "num_kv_heads",
      "head_dim",
      "max_positions",
      "block_size",
    ):
      value = getattr(self, name)
      if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(
          f"config.json: {name} should be a positive whole number, got"
          f" {value!r}."
        )
    if self.num_layers > MAX_LAYERS:
      raise UserError(
        f"config.json: num_layers should be at most {MAX_LAYERS}, got"
        f" {self.num_layers}."
      )
    if self.num_heads % self.num_kv_heads:
      raise UserError(
        f"config.json: num_attention_heads ({self.num_heads}) should be a"
        f" multiple of num_key_value_heads ({self.num_kv_heads})."
      )
    if not 0 < self.rms_norm_eps < math.inf:
      raise UserError(
        f"config.json: rms_norm_eps should be positive, got {self.rms_norm_eps}."
      )
    if self.head_dim % 2:
      raise UserError(
        f"config.json: head_dim should be even, got {self.head_dim}."
      )
    named = [("mask_token_id", self.mask_id), ("bos_token_id", self.bos_id)]
    named += [("eos_token_id", i) for i in self.eos_ids]
    for name, token in named:
      if token is None:
        continue
      if type(token) is not int or not 0 <= token < self.vocab_size:
        raise UserError(
          f"config.json: {name} should lie in the vocabulary of"
          f" {self.vocab_size}, got {token!r}."
        )
    if self.mask_id is not None and self.mask_id in self.eos_ids:
      raise UserError(
        f"config.json: mask_token_id {self.mask_id} is an eos_token_id too."
      )


def preset(name: str) -> ModelConfig:
  """The released sizes '3b', '8b', '14b', and 'tiny' for tests.

  Raises:
    UserError: an unknown name.
  """
  if name == "tiny":
    return _TINY
  if name not in _SIZES:
    raise UserError(
      f"preset should be one of {['tiny', *_SIZES]}, got {name!r}."
    )
  hidden, ffn, layers, theta = _SIZES[name]
  return ModelConfig(
    vocab_size=131072,
    hidden_size=hidden,
    intermediate_size=ffn,
    num_layers=layers,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_positions=262144,
    rope=dataclasses.replace(_ROPE, theta=theta),
    mask_id=100,
    bos_id=1,
    eos_ids=(11,),
  )


_SIZES = {
  "3b": (3072, 9216, 26, 1e6),
  "8b": (4096, 14336, 34, 1e6),
  "14b": (5120, 16384, 40, 1e9),
}
_ROPE = RopeConfig(theta=1e4, factor=16.0, original_max=16384, query_scale=0.1)
_TINY = ModelConfig(
  vocab_size=97,
  hidden_size=48,
  intermediate_size=96,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=16,
  max_positions=512,
  rope=dataclasses.replace(_ROPE, original_max=64),
  block_size=8,
  mask_id=5,
  bos_id=1,
  eos_ids=(2,),
)
