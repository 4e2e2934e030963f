"""Metadata of a GGUF file that would change what a Llama computes.

A walk through llama.cpp's keys: each one is read, harmless, or refused unless
its value is the one with which nothing changes.
"""

import math
import re
from collections.abc import Iterable
from typing import Any

from nemodiff_jax.errors import UserError

_READ = (
  "context_length", "embedding_length", "block_count", "feed_forward_length",
  "attention.head_count", "attention.head_count_kv", "attention.key_length",
  "attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scale_linear",
  "rope.scaling.type", "rope.scaling.factor",
)  # fmt: skip
# Of no use to this architecture, or only beside a key that is refused.
_HARMLESS = (
  "vocab_size", "tensor_data_layout", "pooling_type", "decoder_start_token_id",
  "attention.layer_norm_epsilon", "rope.scaling.finetuned",
  "rope.scaling.original_context_length", "rope.scaling.yarn_beta_fast",
  "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_ext_factor",
  "rope.scaling.yarn_log_multiplier", "rope.freq_base_swa",
  "rope.dimension_count_swa", "attention.key_length_swa",
  "attention.value_length_swa", "attention.sliding_window_pattern",
)  # fmt: skip
_FACTORS = (  # 1 changes nothing, and 0 stands for 1.
  "logit_scale", "embedding_scale", "residual_scale", "attention.output_scale",
  "rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor",
  "rope.scaling.alpha", "attention.scale",
)  # fmt: skip
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)


def check_file(name: str, fields: dict[str, Any]) -> None:
  """Raises a UserError for a part of a file, or for no model at all.

  Args:
    name: of the file.
    fields: the metadata.
  """
  part = _PART.search(name)
  count = fields.get("split.count") or (int(part[2]) if part else 1)
  if count > 1:
    raise UserError(
      f"this is one of {count} parts of a split GGUF file, which is not read;"
      " join them with llama-gguf-split --merge."
    )
  kind = fields.get("general.type", "model")
  if kind != "model":
    raise UserError(
      f"general.type should be 'model', got {kind!r}; give the file of the"
      " model itself."
    )


def check_keys(arch: str, fields: dict[str, Any], head_dim: int) -> None:
  """Raises a UserError for a key that changes the arithmetic.

  Args:
    arch: what the keys of the architecture begin with.
    fields: the metadata.
    head_dim: of the model.
  """
  of_model = {
    key.removeprefix(f"{arch}."): value
    for key, value in fields.items()
    if key.startswith(f"{arch}.")
  }
  _check_rope(arch, of_model)
  wanted = {
    "rope.dimension_count": head_dim,
    "attention.value_length": head_dim,
    "attention.causal": True,
  }
  for key, value in of_model.items():
    if key in (*_READ, *_HARMLESS):
      continue
    if key in wanted:
      if value != wanted[key]:
        _refuse(arch, key, wanted[key], value)
    elif key == "attention.sliding_window":
      if value and value < fields.get(f"{arch}.context_length", 0):
        _refuse(arch, key, 0, value)
    elif key in _FACTORS:
      one = head_dim**-0.5 if key == "attention.scale" else 1
      if value and not math.isclose(value, one, rel_tol=1e-6):
        _refuse(arch, key, one, value)
    elif any(_each(value)):
      _refuse(arch, key, 0, value)


def one_value(key: str, value: Any) -> Any:
  """The value of a key that may be written once for each layer.

  Raises:
    UserError: layers differ.
  """
  values = list(_each(value))
  if any(x != values[0] for x in values):
    raise UserError(
      f"{key} should be the same in all layers, got {value!r}; a model whose"
      " layers differ is not supported."
    )
  return values[0] if values else None


def _check_rope(arch: str, of_model: dict[str, Any]) -> None:
  """llama.cpp scales linearly where a factor has no type."""
  key = "rope.scaling.factor"
  if key not in of_model and "rope.scale_linear" in of_model:
    key = "rope.scale_linear"
  kind = of_model.get("rope.scaling.type", "linear")
  factor = of_model.get(key)
  if kind == "none" or factor == 1:
    return
  if kind == "linear":
    if factor:
      _refuse(arch, key, 1, factor)
    return
  raise UserError(
    f"{arch}.rope.scaling.type should be 'none', got {kind!r}; RoPE is not"
    " scaled here."
  )


def _each(value: Any) -> Iterable[Any]:
  return value if isinstance(value, list) else [value]


def _refuse(arch: str, key: str, wanted: Any, found: Any) -> None:
  raise UserError(
    f"{arch}.{key} should be {wanted!r} or left out, got {found!r}; nothing"
    " else is computed here."
  )
