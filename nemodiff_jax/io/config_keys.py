"""Keys of config.json that would change the arithmetic of this architecture.

A list of what the configs of `transformers` hold, by the values with which
nothing changes. Keys that only matter in training (dropout, router losses,
initialisers) or to another program (caches, dtypes, versions) are not here.
"""

import math
from collections.abc import Callable
from typing import Any

from nemodiff_jax.errors import UserError

_OFF = (None, 0, False)  # 0.0 too, as Python compares.
_ONE = (None, 1)
_NEUTRAL: dict[str, tuple[Any, ...]] = {
  "hidden_act": (None, "swish", "silu"),
  "hidden_activation": (None, "swish", "silu"),
  "position_embedding_type": (None, "rotary", "rope"),
  "is_causal": (None, True),
  "sliding_window": (None,),
  "partial_rotary_factor": _ONE,
  "rotary_pct": _ONE,
  **dict.fromkeys(
    (
      "attention_bias", "mlp_bias", "qkv_bias", "use_bias", "use_qkv_bias",
      "add_bias_linear", "attention_out_bias", "lm_head_bias",
      "use_qk_norm", "qk_norm", "qk_layernorm", "use_sandwich_norm",
      "use_post_norm", "post_norm", "add_unit_offset", "zero_centered_gamma",
      "scale_embedding", "scale_embeddings", "rescale_embeddings", "alibi",
      "parallel_attn", "use_parallel_residual", "multi_query",
      "rope_interleaved", "rope_interleave", "rotary_interleaved",
      "use_bidirectional_attention", "attn_temperature_tuning",
      "attention_sinks", "gated_attn", "attn_logit_softcapping",
      "final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap",
      "attention_logit_cap", "router_logit_softcapping", "clip_qkv",
      "attention_chunk_size", "attention_window_size", "scale_depth",
      "num_experts", "num_local_experts", "n_routed_experts",
      "moe_num_experts", "num_kv_shared_layers", "q_lora_rank",
      "kv_lora_rank", "no_rope_layer_interval",
      "hidden_size_per_layer_input", "residual_gate_temperature",
    ),
    _OFF,
  ),
  **dict.fromkeys(
    (
      "logit_scale", "logits_scaling", "output_multiplier",
      "lm_head_multiplier", "logits_mup_width_multiplier", "width_multiplier",
      "embedding_multiplier", "embedding_scale", "scale_emb",
      "residual_multiplier", "residual_scale", "depth_multiplier",
      "attention_in_multiplier", "attention_out_multiplier", "key_multiplier",
      "attention_value_scale", "query_multiplier",
    ),
    _ONE,
  ),
}  # fmt: skip
_LAYERS: dict[str, Callable[[Any], bool]] = {  # What each layer must be.
  "layer_types": lambda kind: kind == "full_attention",
  "no_rope_layers": lambda rotated: rotated == 1,  # 1: RoPE is applied.
  "mlp_layer_types": lambda kind: kind == "dense",
}

_OTHER_EPS = ("norm_eps", "layer_norm_eps", "layer_norm_epsilon")


def check_keys(text: dict[str, Any], head_dim: int) -> None:
  """Raises a UserError for a key that changes what this model computes.

  Args:
    text: config.json, or its text part.
    head_dim: of the model.
  """
  for name, neutral in _NEUTRAL.items():
    if text.get(name) not in neutral:
      _refuse(name, neutral[-1], text[name])
  for name, good in _LAYERS.items():
    kinds = text.get(name) or []
    if not isinstance(kinds, list) or not all(map(good, kinds)):
      _refuse(name, "full attention and RoPE in every layer", text[name])
  for name, wanted in (
    ("attention_multiplier", head_dim and head_dim**-0.5),
    ("attn_scale", head_dim and head_dim**-0.5),
    ("query_pre_attn_scalar", head_dim),
    ("rotary_dim", head_dim),
    ("qk_head_dim", head_dim),
    ("v_head_dim", head_dim),
  ):
    value = text.get(name)
    if value is not None and not math.isclose(value, wanted, rel_tol=1e-6):
      _refuse(name, wanted, value)
  other = [n for n in _OTHER_EPS if text.get(n) is not None]
  if other and text.get("rms_norm_eps") is None:
    raise UserError(
      f"config.json: rms_norm_eps is missing, but {other[0]} is there, which is"
      " not read; call it rms_norm_eps if it is meant."
    )


def _refuse(name: str, wanted: Any, found: Any) -> None:
  raise UserError(
    f"config.json: {name} should be {wanted!r}, got {found!r}; nothing else is"
    " computed here."
  )
