"""Reads the drafter: a PEFT folder with LoRA on o_proj."""

import dataclasses
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from nemodiff_jax.errors import UserError
from nemodiff_jax.io.names import is_vision
from nemodiff_jax.io.peft_config import read_adapter_config
from nemodiff_jax.io.tensors import TensorFolder, open_file
from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.nn.lora import LoraLayer

FOLDER = "linear_spec_lora"
# Some save the name of the adapter too; wrappers put theirs in front.
_KEY = re.compile(
  r"((?:\w+\.)*?)layers\.(\d+)\.self_attn\.o_proj"
  r"\.lora_([AB])(?:\.\w+)?\.weight"
)
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.|base_model\.model\.)+")


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

  A layer that the config leaves out has a term of zeros.

  Raises:
    UserError: missing files, other targets than o_proj, or other shapes.
  """
  path = folder / "adapter_model.safetensors"
  tensors = open_file(path) if path.exists() else None
  names = [] if tensors is None else list(tensors.files)
  stem = next((m[1] for m in map(_match, names) if m), "encoder.")
  rank, alpha, scale, chosen = read_adapter_config(
    folder, stem, config.num_layers
  )
  if tensors is None:
    advice = (
      "; adapter_model.bin is pickled and not read: save it again with"
      " safe_serialization"
    )
    pickled = (folder / "adapter_model.bin").exists()
    raise UserError(
      f"{path}: the LoRA's weights are missing{advice if pickled else ''}."
    )
  found = _parts(path, tensors)
  wide = (rank, config.num_heads * config.head_dim)
  tall = (config.hidden_size, rank)
  layers = []
  for i in range(config.num_layers):
    a, b = (found.pop((i, part), None) for part in "AB")
    if i not in chosen:
      if a is not None or b is not None:
        raise UserError(
          f"{path}: holds layer {i}, which adapter_config.json leaves out."
        )
      a, b = np.zeros(wide, np.float32), np.zeros(tall, np.float32)
    if a is None or b is None:
      raise UserError(f"{path}: lora_A or lora_B of layer {i} is missing.")
    if (a.shape, b.shape) != (wide, tall):
      raise UserError(
        f"{path}: layer {i} should have lora_A {[*wide]} and lora_B {[*tall]},"
        f" got {a.shape} and {b.shape}; this LoRA was made for another model,"
        " or its config says another r."
      )
    layers.append((a, b))
  if found:
    raise UserError(
      f"{path}: holds layer {max(found)[0]}, but the model has only"
      f" {config.num_layers} layers."
    )
  return Peft(layers, alpha, scale)


def _parts(
  path: Path, tensors: TensorFolder
) -> dict[tuple[int, str], np.ndarray]:
  """(layer, 'A' or 'B') -> tensor; those of an image tower are left out."""
  wanted = [n for n in tensors.files if not is_vision(_WRAPPERS.sub("", n))]
  found: dict[tuple[int, str], np.ndarray] = {}
  for name, value in tensors.read(wanted):
    match = _match(name)
    if not match:
      raise UserError(
        f"{path}: expected LoRA on self_attn.o_proj only, found {name!r}."
      )
    layer, part = int(match[2]), match[3]
    if (layer, part) in found:
      raise UserError(
        f"{path}: lora_{part} of layer {layer} is there twice; keep the tensors"
        " of one adapter."
      )
    if not np.isfinite(value.astype(np.float32)).all():
      raise UserError(f"{path}: tensor {name!r} holds NaN or Inf.")
    found[layer, part] = value
  return found


def _match(name: str) -> re.Match[str] | None:
  """What stands before 'layers.0', the layer, and 'A' or 'B'."""
  return _KEY.fullmatch(_WRAPPERS.sub("", name))
