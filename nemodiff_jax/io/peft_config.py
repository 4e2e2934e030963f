"""adapter_config.json of PEFT: which layers, and with what scale."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemodiff_jax.errors import UserError

FILE = "adapter_config.json"
_NONE = (None, False, [], {})
# Settings by the values with which a LoRA is W + scale * B A and nothing else.
# What only matters while a LoRA is trained or its file is made is not here.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
  "bias": (None, "none"),
  "alora_invocation_tokens": (None, []),
  **dict.fromkeys(
    (
      "use_dora", "use_qalora", "use_bdlora", "lora_bias", "modules_to_save",
      "layer_replication", "target_parameters", "trainable_token_indices",
      "arrow_config", "kasa_config", "velora_config", "monteclora_config",
      "megatron_config",
    ),
    _NONE,
  ),
}  # fmt: skip
# Ways to begin a LoRA that change the weights beneath it too.
_CHANGE_WEIGHTS = ("pissa", "corda", "olora", "loftq", "lora_ga", "kasa")
# The maps of a layer, and those outside of the layers, as PEFT may name them.
_MAPS = (
  "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
  "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
_O_PROJ = "self_attn.o_proj"
_OUTSIDE = ("embed_tokens", "lm_head", "diffusion_head")


def read_adapter_config(
  folder: Path, stem: str, layers: int
) -> tuple[int, float, float, list[int]]:
  """What a PEFT folder's config says of a LoRA on o_proj.

  Args:
    folder: of the LoRA.
    stem: what stands before 'layers.0' in the names of its model's modules.
    layers: of the model.

  Returns:
    r, alpha, the scale that they give, and the layers that it is for.

  Raises:
    UserError: it cannot be read, or says something else than LoRA on o_proj.
  """
  path = folder / FILE
  try:
    given = json.loads(path.read_text(encoding="utf-8-sig"))
    rank, alpha = given["r"], given["lora_alpha"]
  except FileNotFoundError as e:
    raise UserError(
      f"{path}: expected a PEFT LoRA folder, no such file."
    ) from e
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
    raise UserError(
      f"{path}: expected JSON with r and lora_alpha ({e})."
    ) from e
  if type(rank) is not int or rank < 1:
    raise UserError(
      f"{path}: r should be a positive whole number, got {rank!r}."
    )
  if type(alpha) not in (int, float) or not math.isfinite(alpha):
    raise UserError(f"{path}: lora_alpha should be a number, got {alpha!r}.")
  _check_kind(path, given, rank, alpha)
  root = math.sqrt(rank) if given.get("use_rslora") else rank
  return rank, alpha, alpha / root, _layers(path, given, stem, layers)


def _check_kind(
  path: Path, given: dict[str, Any], rank: int, alpha: float
) -> None:
  kind = given.get("peft_type", "LORA")
  if kind != "LORA":
    raise UserError(f"{path}: peft_type should be 'LORA', got {kind!r}.")
  for name, neutral in _NEUTRAL.items():
    if given.get(name) not in neutral:
      raise UserError(
        f"{path}: {name} should be {neutral[0]!r}, got {given[name]!r}; only"
        " a plain LoRA on o_proj is read."
      )
  begun = given.get("init_lora_weights")
  if str(begun).lower().startswith(_CHANGE_WEIGHTS):
    raise UserError(
      f"{path}: init_lora_weights is {begun!r}, which changes the model's own"
      " weights too; save it with PEFT's path_initial_model_for_weight_"
      "conversion."
    )
  for name, same in (("rank_pattern", rank), ("alpha_pattern", alpha)):
    pattern = given.get(name) or {}
    if not isinstance(pattern, dict) or any(
      value != same for value in pattern.values()
    ):
      raise UserError(
        f"{path}: {name} should be empty, got {given[name]!r}; a LoRA whose"
        " layers differ is not supported."
      )


def _layers(
  path: Path, given: dict[str, Any], stem: str, layers: int
) -> list[int]:
  """The layers whose o_proj is meant, by PEFT's rules of names."""
  targets = given.get("target_modules")
  try:
    meant = {
      (i, name)
      for i in range(layers)
      for name in _MAPS
      if _is_meant(given, f"{stem}layers.{i}.{name}")
    }
    outside = [x for x in _OUTSIDE if _is_meant(given, f"{stem}{x}")]
  except (re.error, TypeError, ValueError) as e:
    raise UserError(
      f"{path}: target_modules should be ['o_proj'], got {targets!r}, with"
      f" which layers cannot be chosen ({e})."
    ) from e
  found = sorted(i for i, name in meant if name == _O_PROJ)
  others = sorted({name for _, name in meant} - {_O_PROJ}) + outside
  if not found or others:
    also = f", which means {others} too" if found else ""
    raise UserError(
      f"{path}: target_modules should be ['o_proj'], got {targets!r}{also}."
    )
  return found


def _is_meant(given: dict[str, Any], module: str) -> bool:
  """Whether PEFT would put its LoRA on a module of this name."""
  targets = given.get("target_modules")
  if targets == "o_proj":  # As some write the list of one.
    targets = [targets]
  left_out = given.get("exclude_modules")
  if left_out and _named(left_out, module):
    return False
  chosen = given.get("layers_to_transform")
  if isinstance(targets, str) and chosen is not None:
    raise ValueError("layers_to_transform goes with a list")
  if isinstance(targets, str):
    linear = not module.endswith(_OUTSIDE)
    return (
      linear if targets.lower() == "all-linear" else _named(targets, module)
    )
  if not isinstance(targets, list):
    raise TypeError("neither a text nor a list")
  if module in targets:
    return True
  if not _named(targets, module):
    return False
  if chosen is None or chosen == []:
    return True
  index = _index(module, given.get("layers_pattern"))
  return index in (chosen if isinstance(chosen, list) else [chosen])


def _named(names: str | Sequence[str], module: str) -> bool:
  """By a regular expression for the whole name, or by ends of the name."""
  if isinstance(names, str):
    return re.fullmatch(names, module) is not None
  return any(module == n or module.endswith(f".{n}") for n in names)


def _index(module: str, pattern: str | Sequence[str] | None) -> int | None:
  """The number of a module's layer; None where the pattern finds none."""
  if not pattern:
    match = re.match(r".*?\.[^.]*\.(\d+)\.", module)
    return int(match[1]) if match else None
  for one in [pattern] if isinstance(pattern, str) else pattern:
    match = re.match(rf"(?:^|.*?\.){one}\.(\d+)\.", module)
    if match:
      return int(match[1])
  return None
