"""Reads the drafter: a PEFT folder with LoRA on o_proj."""

import dataclasses
import json
import math
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from nemodiff_jax.errors import UserError
from nemodiff_jax.io.names import released_name
from nemodiff_jax.io.tensors import open_file
from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.nn.lora import LoraLayer

FOLDER = "linear_spec_lora"
_KEY = re.compile(
  r"encoder\.layers\.(\d+)\.self_attn\.o_proj\.lora_([AB])\.weight"
)


@dataclasses.dataclass(frozen=True)
class Peft:
  """A PEFT folder with LoRA on o_proj: W + alpha / r * B A.

  Attributes:
    layers: (A [r, N * H], B [D, r]) of each layer, as stored.
    alpha: lora_alpha.
    scale: alpha / r, or alpha / sqrt(r) with use_rslora.
  """

  layers: list[tuple[np.ndarray, np.ndarray]]
  alpha: float
  scale: float


def load_lora(
  folder: Path, config: ModelConfig, dtype=jnp.float32
) -> tuple[LoraLayer, ...]:
  """Reads the drafter, one entry per layer; B is multiplied by the scale.

  Raises:
    UserError: as `read_peft`.
  """
  peft = read_peft(folder, config)
  layers = []
  for a, b in peft.layers:
    scaled = b.astype(np.float32).T * np.float32(peft.scale)
    layers.append(
      LoraLayer(
        a=jnp.asarray(np.ascontiguousarray(a.T)).astype(dtype),
        b=jnp.asarray(scaled).astype(dtype),
      )
    )
  return tuple(layers)


def read_peft(folder: Path, config: ModelConfig) -> Peft:
  """Reads adapter_config.json and adapter_model.safetensors.

  Raises:
    UserError: missing files, other targets than o_proj, or other shapes.
  """
  rank, alpha, scale = _scale(folder)
  path = folder / "adapter_model.safetensors"
  if not path.exists():
    raise UserError(f"{path}: the LoRA's weights are missing.")
  tensors = open_file(path)
  found: dict[tuple[int, str], np.ndarray] = {}
  for name, value in tensors.read(list(tensors.files)):
    match = _KEY.fullmatch(
      released_name(name.removeprefix("base_model.model."))
    )
    if not match:
      raise UserError(
        f"{path}: expected LoRA on self_attn.o_proj only, found {name!r}."
      )
    if not np.isfinite(value.astype(np.float32)).all():
      raise UserError(f"{path}: tensor {name!r} holds NaN or Inf.")
    found[int(match[1]), match[2]] = value
  layers = []
  for i in range(config.num_layers):
    a, b = (found.pop((i, part), None) for part in "AB")
    if a is None or b is None:
      raise UserError(f"{path}: lora_A or lora_B of layer {i} is missing.")
    wide = config.num_heads * config.head_dim
    if (a.shape, b.shape) != ((rank, wide), (config.hidden_size, rank)):
      raise UserError(
        f"{path}: layer {i} should have lora_A [{rank}, {wide}] and lora_B"
        f" [{config.hidden_size}, {rank}], got {a.shape} and {b.shape}; this"
        " LoRA was made for another model, or its config says another r."
      )
    layers.append((a, b))
  if found:
    raise UserError(
      f"{path}: holds layer {max(found)[0]}, but the model has only"
      f" {config.num_layers} layers."
    )
  return Peft(layers, alpha, scale)


def _scale(folder: Path) -> tuple[int, float, float]:
  """r, alpha, and the scale that they give."""
  path = folder / "adapter_config.json"
  try:
    given = json.loads(path.read_text(encoding="utf-8"))
    rank, alpha = given["r"], given["lora_alpha"]
  except FileNotFoundError as e:
    raise UserError(
      f"{path}: expected a PEFT LoRA folder, no such file."
    ) from e
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise UserError(
      f"{path}: expected JSON with r and lora_alpha ({e})."
    ) from e
  targets = given.get("target_modules")
  if targets not in (["o_proj"], "o_proj"):
    raise UserError(
      f"{path}: target_modules should be ['o_proj'], got {targets!r}."
    )
  if type(rank) is not int or rank < 1:
    raise UserError(
      f"{path}: r should be a positive whole number, got {rank!r}."
    )
  if type(alpha) not in (int, float) or not math.isfinite(alpha):
    raise UserError(f"{path}: lora_alpha should be a number, got {alpha!r}.")
  for name in ("rank_pattern", "alpha_pattern"):
    if given.get(name):
      raise UserError(
        f"{path}: {name} should be empty, got {given[name]!r}; a LoRA whose"
        " layers differ is not supported."
      )
  root = math.sqrt(rank) if given.get("use_rslora") else rank
  return rank, alpha, alpha / root
