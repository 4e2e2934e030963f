"""config.json in the Hugging Face layout -> ModelConfig, and back."""

import math
from typing import Any

from nemodiff_jax.errors import UserError
from nemodiff_jax.nn.config import ModelConfig, RopeConfig

TEXT_MODEL_TYPES = ("nemotron_labs_diffusion", "ministral3")


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
