"""Weights that were quantised elsewhere: recognised and refused by name."""

import re
from typing import Any

from nemodiff_jax.nn.quantize import MARK

# What a quantised tensor is stored as, or what lies beside it.
_TENSORS = {
  "weight_scale_inv": "fp8",
  "activation_scale": "fp8",
  "weight_scale_2": "nvfp4 (modelopt)",
  "weight_packed": "compressed-tensors",
  "weight_shape": "compressed-tensors",
  "weight_zero_point": "compressed-tensors",
  "qweight": "awq or gptq",
  "qzeros": "awq or gptq",
  "g_idx": "gptq",
  "SCB": "bitsandbytes",
  "weight_format": "bitsandbytes",
  "absmax": "bitsandbytes",
  "quant_map": "bitsandbytes",
  "nested_absmax": "bitsandbytes",
  "nested_quant_map": "bitsandbytes",
  "weight_blocks": "mxfp4",
  "weight_scales": "mxfp4",
  "W_q": "hqq",
  "weight_scale": "fp8 or int8",
  "input_scale": "fp8 or int8",
  "k_scale": "fp8",
  "v_scale": "fp8",
}
_STATE = re.compile(r"\.quant_state\.|\._data$|\._scale$")
_CODES = {"F8_E4M3": "fp8", "F8_E5M2": "fp8", "F4": "fp4", "U8": "4 bits"}


def refusal(method: str) -> str:
  """What is said of weights that are quantised by a method."""
  return (
    f"quantised as {method}, which is not read; use the bf16 release of this"
    " model (--quantize=int8 makes its own)"
  )


def method_of_config(config: dict[str, Any]) -> str | None:
  """The method that a config.json names; None: none, or our own int8."""
  texts = (config, config.get("text_config"))
  for part in (x for x in texts if isinstance(x, dict)):
    for key in ("quantization_config", "compression_config"):
      given = part.get(key)
      if not given or given == MARK:
        continue
      if not isinstance(given, dict):
        return repr(given)
      known = ("quant_method", "quant_algo", "format", "bits")
      named = [str(given[k]) for k in known if given.get(k) is not None]
      return named[0] if named else "an unnamed method"
  return None


def method_of_tensor(name: str, code: str | None = None) -> str | None:
  """The method that a tensor's name or safetensors dtype gives away."""
  if code in _CODES:
    return _CODES[code]
  if _STATE.search(name):
    return "bitsandbytes or quanto"
  return _TENSORS.get(name.rsplit(".", 1)[-1])
