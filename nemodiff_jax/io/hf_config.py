"""config.json in the Hugging Face layout -> ModelConfig, and back."""

import math
from typing import Any

from nemodiff_jax.errors import UserError
from nemodiff_jax.io.config_keys import check_keys
from nemodiff_jax.io.quantized import method_of_config, refusal
from nemodiff_jax.nn.config import ModelConfig, RopeConfig

TEXT_MODEL_TYPES = ("nemotron_labs_diffusion", "ministral3")
# Of rope_parameters: what is read; what says nothing of the arithmetic.
_ROPE_READ = (
  "rope_theta", "factor", "original_max_position_embeddings", "beta_fast",
  "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim",
  "llama_4_scaling_beta",
)  # fmt: skip
_ROPE_HARMLESS = ("rope_type", "max_position_embeddings", "finetuned")
# Kinds that are plain RoPE with a factor of 1, and what they add to it.
_PLAIN_AT_ONE = ("linear", "dynamic", "llama3")
_OF_LLAMA3 = ("low_freq_factor", "high_freq_factor")


def from_hf(config: dict[str, Any]) -> ModelConfig:
  """Reads a Hugging Face config.json.

  Takes `nemotron_labs_diffusion`, plain `ministral3`, and the multimodal
  Ministral-3 layout, of which only the text part (`text_config`) is used.

  Raises:
    UserError: another architecture, a field that is missing or unusable, one
      that would change the arithmetic, or weights of another program's
      quantisation.
  """
  text = config if config.get("text_config") is None else config["text_config"]
  found = text.get("model_type")
  if found not in TEXT_MODEL_TYPES:
    raise UserError(
      f"config.json: model_type should be one of {TEXT_MODEL_TYPES} (alone or"
      f" in text_config), got {found!r}. This architecture is not supported."
    )
  method = method_of_config(config)
  if method is not None:
    raise UserError(f"config.json: the weights are {refusal(method)}.")
  mask_id = text.get("mask_token_id")
  heads, hidden = (
    _field(text, "num_attention_heads"),
    _field(text, "hidden_size"),
  )
  head_dim = _or(text, "head_dim", hidden // (heads or 1))
  check_keys(text, head_dim)
  return ModelConfig(
    vocab_size=_field(text, "vocab_size"),
    hidden_size=hidden,
    intermediate_size=_field(text, "intermediate_size"),
    num_layers=_field(text, "num_hidden_layers"),
    num_heads=heads,
    num_kv_heads=_or(text, "num_key_value_heads", heads),
    head_dim=head_dim,
    max_positions=_field(text, "max_position_embeddings"),
    rope=_rope(text),
    rms_norm_eps=float(_or(text, "rms_norm_eps", 1e-5)),
    tie_embeddings=_tied(config, text),
    block_size=_or(text, "block_size", 32),
    mask_id=None if mask_id is None or mask_id < 0 else mask_id,
    bos_id=text.get("bos_token_id"),
    eos_ids=stop_ids(text, config),
  )


def stop_ids(*parts: dict[str, Any]) -> tuple[int, ...]:
  """The union of eos_token_id of several objects, each an id or a list."""
  found: list[int] = []
  for part in parts:
    value = part.get("eos_token_id")
    found += value if isinstance(value, list) else [value]
  return tuple(  # Not by a set: what is no id may be unhashable.
    x for n, x in enumerate(found) if x is not None and x not in found[:n]
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
  given = _rope_parameters(text)
  kind = given.get("rope_type")
  if kind is None and "factor" in given:
    raise UserError(
      "config.json: rope_parameters has a factor, but no rope_type."
    )
  kind = kind or "default"
  factor = given.get("factor")
  harmless = _ROPE_HARMLESS
  if kind in _PLAIN_AT_ONE and factor == 1:
    kind, harmless = "default", (*harmless, *_OF_LLAMA3)
  if kind not in ("default", "yarn"):
    raise UserError(
      "config.json: rope_type should be 'default' or 'yarn', got"
      f" {kind!r} with factor {factor!r}; no other scaling is computed here."
    )
  for name, value in given.items():
    if name == "partial_rotary_factor" and value == 1:
      continue
    if name not in (*_ROPE_READ, *harmless) and value is not None:
      raise UserError(
        f"config.json: rope_parameters.{name} = {value!r} is not known here,"
        " and may change the arithmetic; take it out if it does not."
      )
  theta = given.get("rope_theta", text.get("rope_theta"))
  if theta is None:
    raise UserError("config.json: rope_theta is missing.")
  original = given.get("original_max_position_embeddings")
  if kind == "yarn":  # The older place of it wins, as in transformers.
    original = _or(text, "original_max_position_embeddings", original)
  factor = float(_field(given, "factor")) if kind == "yarn" else None
  return RopeConfig(
    theta=float(theta),
    factor=factor,
    original_max=original or 0,
    beta_fast=float(given.get("beta_fast") or 32.0),
    beta_slow=float(given.get("beta_slow") or 1.0),
    truncate=_flag("truncate", given.get("truncate", True) or False),
    attention_factor=_attention_factor(given, factor),
    query_scale=float(given.get("llama_4_scaling_beta") or 0.0),
  )


def _rope_parameters(text: dict[str, Any]) -> dict[str, Any]:
  """rope_parameters, or its older name rope_scaling; {}: neither.

  Raises:
    UserError: no object, two that say different things, one per kind of
      layer, or none where transformers would scale all the same.
  """
  both = []
  for name in ("rope_parameters", "rope_scaling"):
    given = text.get(name) or {}
    if not isinstance(given, dict):
      raise UserError(
        f"config.json: {name} should be an object, got {given!r}."
      )
    if list(given) == ["full_attention"]:  # One kind of layer.
      given = given["full_attention"] or {}
    for key, value in given.items():
      if isinstance(value, dict):
        raise UserError(
          f"config.json: {name} should be one for all layers, got one for"
          f" {key!r}: {value!r}."
        )
    kind = given.get("rope_type", given.get("type"))
    given = {k: v for k, v in given.items() if k != "type"}
    both.append(given | ({} if kind is None else {"rope_type": kind}))
  new, old = both
  for key in new.keys() & old.keys():
    if new[key] != old[key]:
      raise UserError(
        f"config.json: rope_parameters and rope_scaling should agree, got {key}"
        f" {new[key]!r} and {old[key]!r}; leave one of them out."
      )
  if not (new or old) and text["model_type"] == "ministral3":
    raise UserError(
      "config.json: rope_parameters is missing; a Ministral-3 without it could"
      " be of plain RoPE or of YaRN (the default of transformers): name its"
      " rope_type."
    )
  return new | old


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


def _tied(config: dict[str, Any], text: dict[str, Any]) -> bool:
  name = "tie_word_embeddings"
  return _flag(name, _or(config, name, _or(text, name, False)))


def _flag(name: str, value: Any) -> bool:
  if not isinstance(value, bool):
    raise UserError(
      f"config.json: {name} should be true or false, got {value!r}."
    )
  return value


def _or(given: dict[str, Any], name: str, default: Any) -> Any:
  """The value of a key; the default where it is missing or null."""
  value = given.get(name)
  return default if value is None else value
