"""One loader for every checkpoint: config, tokenizer and weights of a folder."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from checkpoints_convert import names
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.hub import find_checkpoint
from nemodiff_jax.io.lora import FOLDER as LORA_FOLDER
from nemodiff_jax.io.lora import load_lora
from nemodiff_jax.io.orbax import OrbaxTensors, is_orbax
from nemodiff_jax.io.tensors import TensorFolder, open_tensors
from nemodiff_jax.nn.config import ModelConfig, from_hf
from nemodiff_jax.nn.lora import LoraLayer
from nemodiff_jax.nn.model import Params
from nemodiff_jax.text.chat import ChatTemplate, load_template
from nemodiff_jax.text.tokenizer import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A checkpoint folder whose weights are not read yet.

  Attributes:
    folder: where it is.
    config: from config.json.
    tokenizer: None where the folder has none; token ids still work.
    template: for conversations; None where the folder has none.
  """

  folder: Path
  config: ModelConfig
  tokenizer: Tokenizer | None
  template: ChatTemplate | None

  def match_tensors(self) -> tuple[TensorFolder | OrbaxTensors, dict[str, str]]:
    """The folder's tensors, and the released names of those of the model.

    Raises:
      UserError: a tensor that is missing, unknown or of another shape; a file
        that is missing or cut short.
    """
    table = tensor_table(self.config)
    tensors = (
      OrbaxTensors(self.folder, table)
      if is_orbax(self.folder)
      else open_tensors(self.folder)
    )
    wanted = _match(self.folder, list(tensors.files), table)
    for source, name in wanted.items():
      found, shape = tensors.shape(source), table[name].shape
      if found != shape:
        raise UserError(
          f"{tensors.files[source]}: tensor {source!r} should have shape"
          f" {shape} by config.json, got {found}."
        )
    return tensors, wanted

  def load_params(self, dtype=jnp.float32) -> Params:
    """Reads the weights tensor by tensor into `dtype`.

    Raises:
      UserError: a tensor that is missing, unknown, of another shape, or not
        finite; a file that is missing or cut short.
    """
    tensors, wanted = self.match_tensors()
    table = tensor_table(self.config)
    params: Params = {}
    for source, value in tensors.read(list(wanted)):
      tensor = table[wanted[source]]
      array, finite = _place(value, tensor.transposed, jnp.dtype(dtype))
      if not finite:
        raise UserError(
          f"{tensors.files[source]}: tensor {source!r} holds NaN or Inf"
          f" {_first_bad(value)}; the checkpoint is damaged."
        )
      node = params
      for key in tensor.path[:-1]:
        node = node.setdefault(key, {})
      node[tensor.path[-1]] = array
    return params

  def load_lora(
    self, folder: str | None = None, dtype=jnp.float32
  ) -> tuple[LoraLayer, ...] | None:
    """Reads the drafter.

    Args:
      folder: a PEFT folder; 'none' for no drafter; None for the checkpoint's
        own linear_spec_lora/, if it has one.
      dtype: of the result.
    """
    if folder == "none":
      return None
    own = self.folder / LORA_FOLDER
    if folder is None and not own.exists():
      return None
    return load_lora(Path(folder) if folder else own, self.config, dtype)


def open_checkpoint(name: str | None) -> Checkpoint:
  """Finds a checkpoint and reads its config and tokenizer.

  Args:
    name: a folder, a hub name 'org/name[@revision]', or None for the embedded
      checkpoint.

  Raises:
    UserError: not there, or not readable.
  """
  folder = find_checkpoint(name)
  path = folder / "config.json"
  try:
    given = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError as e:
    raise UserError(
      f"{path}: expected a checkpoint folder, no such file."
    ) from e
  except (OSError, ValueError) as e:
    raise UserError(f"{path}: expected JSON ({e}).") from e
  if not isinstance(given, dict):
    raise UserError(f"{path}: expected a JSON object.")
  try:
    config = from_hf(given)
  except UserError as e:
    raise UserError(f"{folder}: {e}") from e
  except (TypeError, AttributeError, ValueError) as e:
    raise UserError(f"{path}: a value is of the wrong type ({e}).") from e
  return Checkpoint(
    folder, config, load_tokenizer(folder), load_template(folder)
  )


def tensor_table(config: ModelConfig) -> dict[str, names.Tensor]:
  """Every tensor of a checkpoint of this config, by released name."""
  return names.released_tensors(
    vocab=config.vocab_size,
    hidden=config.hidden_size,
    ffn=config.intermediate_size,
    layers=config.num_layers,
    heads=config.num_heads,
    kv_heads=config.num_kv_heads,
    head_dim=config.head_dim,
    tied=config.tie_embeddings,
  )


def _match(
  folder: Path, sources: list[str], table: dict[str, names.Tensor]
) -> dict[str, str]:
  """Name in the folder -> released name, for every tensor of the table."""
  vision = [s for s in sources if names.is_vision(s)]
  if vision:
    logging.info("skipped %d vision tensors: %s", len(vision), vision)
  wanted: dict[str, str] = {}
  for source in sources:
    name = names.released_name(source)
    if source in vision:
      continue
    if name == "diffusion_head.weight" and name not in table:
      logging.info("skipped %s: the config ties the embeddings", source)
    elif name not in table:
      raise UserError(
        f"{folder}: unknown tensor {source!r}{names.nearest(name, table)}."
      )
    elif name in wanted.values():
      raise UserError(f"{folder}: tensor {name!r} is there twice.")
    else:
      wanted[source] = name
  missing = [name for name in table if name not in wanted.values()]
  if missing:
    raise UserError(
      f"{folder}: {len(missing)} of {len(table)} tensors are missing, first"
      f" {missing[0]!r}."
    )
  return wanted


@functools.partial(jax.jit, static_argnums=(1, 2))
def _convert(value, transposed: bool, dtype):
  value = value.T if transposed else value
  return value.astype(dtype), jnp.isfinite(value).all()


def _place(value: Any, transposed: bool, dtype) -> tuple[jax.Array, bool]:
  array, finite = _convert(value, transposed, dtype)
  return array, bool(finite)


def _first_bad(value: Any) -> str:
  bad = jnp.argwhere(~jnp.isfinite(jnp.asarray(value)), size=1)[0]
  return f"at {[int(i) for i in bad]}"
