"""What a checkpoint's config.json says about the model, checked once."""

import dataclasses
import math
from typing import Any

from nemodiff_jax.errors import UserError

MAX_LAYERS = 1000  # More is a damaged file, not a model.
TEXT_MODEL_TYPES = ("nemotron_labs_diffusion", "ministral3")


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
    if not self.theta > 1:
      raise UserError(
        f"config.json: rope_theta should be above 1, got {self.theta}."
      )
    if self.factor is not None and not self.factor > 0:
      raise UserError(
        f"config.json: rope factor should be positive, got {self.factor}."
      )
    if (self.factor is not None or self.query_scale) and self.original_max < 1:
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
    if not self.rms_norm_eps > 0:
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
      if not isinstance(token, int) or not 0 <= token < self.vocab_size:
        raise UserError(
          f"config.json: {name} should lie in the vocabulary of"
          f" {self.vocab_size}, got {token!r}."
        )
    if self.mask_id is not None and self.mask_id in self.eos_ids:
      raise UserError(
        f"config.json: mask_token_id {self.mask_id} is an eos_token_id too."
      )


def from_hf(config: dict[str, Any]) -> ModelConfig:
  """Reads a Hugging Face config.json.

  Takes `nemotron_labs_diffusion`, plain `ministral3`, and the multimodal
  Ministral-3 layout, of which only the text part (`text_config`) is used.

  Raises:
    UserError: another architecture, or a field that is missing or unusable.
  """
  text = config.get("text_config", config)
  found = text.get("model_type")
  if found not in TEXT_MODEL_TYPES:
    raise UserError(
      f"config.json: model_type should be one of {TEXT_MODEL_TYPES} (alone or"
      f" in text_config), got {found!r}. This architecture is not supported."
    )
  for name, wanted in (
    ("hidden_act", "silu"),
    ("attention_bias", False),
    ("mlp_bias", False),
    ("sliding_window", None),
  ):
    if text.get(name, wanted) != wanted:
      raise UserError(
        f"config.json: {name} should be {wanted!r}, got {text[name]!r}."
      )
  mask_id = text.get("mask_token_id")
  heads, hidden = (
    _field(text, "num_attention_heads"),
    _field(text, "hidden_size"),
  )
  return ModelConfig(
    vocab_size=_field(text, "vocab_size"),
    hidden_size=hidden,
    intermediate_size=_field(text, "intermediate_size"),
    num_layers=_field(text, "num_hidden_layers"),
    num_heads=heads,
    num_kv_heads=text.get("num_key_value_heads") or heads,
    head_dim=text.get("head_dim") or hidden // (heads or 1),
    max_positions=_field(text, "max_position_embeddings"),
    rope=_rope(text),
    rms_norm_eps=float(text.get("rms_norm_eps", 1e-5)),
    tie_embeddings=bool(
      config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    ),
    block_size=32 if text.get("block_size") is None else text["block_size"],
    mask_id=None if mask_id is None or mask_id < 0 else mask_id,
    bos_id=text.get("bos_token_id"),
    eos_ids=_ids(text.get("eos_token_id", config.get("eos_token_id"))),
  )


def to_hf(config: ModelConfig) -> dict[str, Any]:
  """The config.json of the released layout; `from_hf` reads it back."""
  rope = config.rope
  parameters = {
    "rope_type": "default" if rope.factor is None else "yarn",
    "rope_theta": rope.theta,
    "original_max_position_embeddings": rope.original_max,
    "llama_4_scaling_beta": rope.query_scale,
  }
  if rope.factor is not None:
    parameters |= {
      "factor": rope.factor,
      "beta_fast": rope.beta_fast,
      "beta_slow": rope.beta_slow,
      "truncate": rope.truncate,
      "attention_factor": rope.attention_factor,
    }
  return {
    "architectures": ["NemotronLabsDiffusionModel"],
    "model_type": "nemotron_labs_diffusion",
    "vocab_size": config.vocab_size,
    "hidden_size": config.hidden_size,
    "intermediate_size": config.intermediate_size,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "num_key_value_heads": config.num_kv_heads,
    "head_dim": config.head_dim,
    "hidden_act": "silu",
    "max_position_embeddings": config.max_positions,
    "rms_norm_eps": config.rms_norm_eps,
    "rope_parameters": parameters,
    "tie_word_embeddings": config.tie_embeddings,
    "block_size": config.block_size,
    "mask_token_id": config.mask_id,
    "bos_token_id": config.bos_id,
    "eos_token_id": list(config.eos_ids),
    "dlm_paradigm": "bidirectional",
  }


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
  return from_hf(
    {
      **_RELEASED,
      "hidden_size": hidden,
      "intermediate_size": ffn,
      "num_hidden_layers": layers,
      "rope_parameters": {**_RELEASED_ROPE, "rope_theta": theta},
    }
  )


def _rope(text: dict[str, Any]) -> RopeConfig:
  given = text.get("rope_parameters") or text.get("rope_scaling") or {}
  if not isinstance(given, dict):
    raise UserError(
      f"config.json: rope_parameters should be an object, got {given!r}."
    )
  kind = given.get("rope_type", given.get("type"))
  if kind is None and "factor" in given:
    raise UserError(
      "config.json: rope_parameters has a factor, but no rope_type."
    )
  kind = kind or "default"
  if kind not in ("default", "yarn"):
    raise UserError(
      f"config.json: rope_type should be 'default' or 'yarn', got {kind!r}."
    )
  theta = given.get("rope_theta", text.get("rope_theta"))
  if theta is None:
    raise UserError("config.json: rope_theta is missing.")
  factor = _field(given, "factor") if kind == "yarn" else None
  return RopeConfig(
    theta=float(theta),
    factor=factor,
    original_max=given.get("original_max_position_embeddings") or 0,
    beta_fast=float(given.get("beta_fast") or 32.0),
    beta_slow=float(given.get("beta_slow") or 1.0),
    truncate=given.get("truncate", True),
    attention_factor=_attention_factor(given, factor),
    query_scale=float(given.get("llama_4_scaling_beta") or 0.0),
  )


def _attention_factor(given: dict[str, Any], factor: float | None) -> float:
  """YaRN's temperature; 1 where mscale equals mscale_all_dim (this family)."""
  if factor is None:
    return 1.0
  if given.get("attention_factor") is not None:
    return float(given["attention_factor"])
  log = math.log(factor) if factor > 1 else 0.0
  mscale, all_dim = given.get("mscale"), given.get("mscale_all_dim")
  if mscale and all_dim:
    return (0.1 * mscale * log + 1.0) / (0.1 * all_dim * log + 1.0)
  return 0.1 * log + 1.0


def _field(text: dict[str, Any], name: str) -> Any:
  if text.get(name) is None:
    raise UserError(f"config.json: {name} is missing.")
  return text[name]


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
  if value is None:
    return ()
  return (value,) if isinstance(value, int) else tuple(value)


_SIZES = {
  "3b": (3072, 9216, 26, 1e6),
  "8b": (4096, 14336, 34, 1e6),
  "14b": (5120, 16384, 40, 1e9),
}
_RELEASED = {
  "model_type": "nemotron_labs_diffusion",
  "vocab_size": 131072,
  "num_attention_heads": 32,
  "num_key_value_heads": 8,
  "head_dim": 128,
  "max_position_embeddings": 262144,
  "block_size": 32,
  "mask_token_id": 100,
  "bos_token_id": 1,
  "eos_token_id": 11,
}
_RELEASED_ROPE = {
  "rope_type": "yarn",
  "factor": 16.0,
  "original_max_position_embeddings": 16384,
  "beta_fast": 32.0,
  "beta_slow": 1.0,
  "mscale": 1.0,
  "mscale_all_dim": 1.0,
  "llama_4_scaling_beta": 0.1,
}
_TINY = from_hf(
  {
    **_RELEASED,
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "block_size": 8,
    "mask_token_id": 5,
    "eos_token_id": 2,
    "rope_parameters": {
      **_RELEASED_ROPE,
      "rope_theta": 1e4,
      "original_max_position_embeddings": 64,
    },
  }
)
