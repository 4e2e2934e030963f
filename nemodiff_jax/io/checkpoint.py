"""One loader for every checkpoint: config, tokenizer and weights of a folder."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nemodiff_jax.errors import UserError
from nemodiff_jax.io import names
from nemodiff_jax.io.generation import with_stop_ids
from nemodiff_jax.io.hf_config import from_hf
from nemodiff_jax.io.hub import find_checkpoint, local_path
from nemodiff_jax.io.lora import FOLDER as LORA_FOLDER
from nemodiff_jax.io.lora import load_lora
from nemodiff_jax.io.matching import match
from nemodiff_jax.io.orbax import OrbaxTensors, is_orbax
from nemodiff_jax.io.tensors import TensorFolder, open_tensors
from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.nn.lora import LoraLayer
from nemodiff_jax.nn.model import Params
from nemodiff_jax.nn.quantize import quantize_kernel, stored_scheme
from nemodiff_jax.nn.sharding import shard_lora, spec
from nemodiff_jax.text.chat import ChatTemplate, load_template
from nemodiff_jax.text.tokenizer import Tokenizer, load_tokenizer

_AS_STORED = {"kernel": "int8", "scale": "float32"}  # In an int8 folder.


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A checkpoint folder whose weights are not read yet.

  Attributes:
    folder: where it is.
    config: from config.json; stop ids of generation_config.json too.
    tokenizer: None where the folder has none; token ids still work.
    template: for conversations; None where the folder has none.
    scheme: how its tensors are quantised, one of `nn.quantize.SCHEMES`.
  """

  folder: Path
  config: ModelConfig
  tokenizer: Tokenizer | None
  template: ChatTemplate | None
  scheme: str = "none"

  @property
  def table(self) -> dict[str, names.Tensor]:
    """Every tensor of the model, by released name."""
    table = tensor_table(self.config)
    return table if self.scheme == "none" else names.with_scales(table)

  def loaded_scheme(self, scheme: str) -> str:
    """How parameters are held that are loaded with `scheme`."""
    return scheme if self.scheme == "none" else self.scheme

  def match_tensors(self) -> tuple[TensorFolder | OrbaxTensors, dict[str, str]]:
    """The folder's tensors, and the released names of those of the model.

    Raises:
      UserError: as `matching.match`; a file that is missing or cut short.
    """
    table = self.table
    tensors = (
      OrbaxTensors(self.folder, table)
      if is_orbax(self.folder)
      else open_tensors(self.folder)
    )
    return tensors, match(self.folder, tensors, table)

  def load_params(
    self, dtype=jnp.float32, scheme: str = "none", mesh: Mesh | None = None
  ) -> Params:
    """Reads the weights tensor by tensor into `dtype`.

    Args:
      dtype: of what is not quantised.
      scheme: 'none' or 'int8', one of `nn.quantize.SCHEMES`; what is stored
        in int8 stays so.
      mesh: each of its devices gets its own part of every tensor, and no
        more; None: one device.

    Raises:
      UserError: a tensor that is missing, unknown, of another shape, or not
        finite; a file that is missing or cut short.
    """
    tensors, wanted = self.match_tensors()
    table = self.table
    params: Params = {}
    for source, value in tensors.read(list(wanted), sliced=mesh is not None):
      tensor = table[wanted[source]]
      if mesh is not None:
        value = _spread(value, tensor, mesh)
      to = jnp.dtype(dtype)
      if self.scheme != "none" and tensor.path[-1] in _AS_STORED:
        to = jnp.dtype(_AS_STORED[tensor.path[-1]])
        if tensors.dtype(source) != to:
          raise UserError(
            f"{tensors.files[source]}: tensor {source!r} should be {to} by"
            f" config.json, got {tensors.dtype(source)}."
          )
      int8 = scheme == "int8" and self.scheme == "none"
      leaves, finite = _place(value, tensor, to, int8, mesh)
      if not finite:
        raise UserError(
          f"{tensors.files[source]}: tensor {source!r} holds NaN or Inf"
          f" {_first_bad(value)}; the checkpoint is damaged."
        )
      node = params
      for key in tensor.path[:-1]:
        node = node.setdefault(key, {})
      node.update(leaves)
    return params

  def load_lora(
    self,
    folder: str | None = None,
    dtype=jnp.float32,
    mesh: Mesh | None = None,
  ) -> tuple[LoraLayer, ...] | None:
    """Reads the drafter.

    Args:
      folder: a PEFT folder; 'none' for no drafter; None for the checkpoint's
        own linear_spec_lora/, if it has one.
      dtype: of the result.
      mesh: the devices that share the model; None: one device.
    """
    if folder == "none":
      return None
    own = self.folder / LORA_FOLDER
    if folder is None and not own.exists():
      return None
    path = local_path(folder) if folder else own
    lora = load_lora(path, self.config, dtype)
    return lora if mesh is None else shard_lora(lora, mesh)


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
    given = json.loads(path.read_text(encoding="utf-8-sig"))
  except FileNotFoundError as e:
    raise UserError(
      f"{path}: expected a checkpoint folder, no such file."
    ) from e
  except (OSError, ValueError, RecursionError) as e:
    raise UserError(f"{path}: expected JSON ({e}).") from e
  if not isinstance(given, dict):
    raise UserError(f"{path}: expected a JSON object.")
  try:
    config = from_hf(given)
  except UserError as e:
    raise UserError(f"{folder}: {e}") from e
  except (TypeError, AttributeError, ValueError, ArithmeticError) as e:
    raise UserError(f"{path}: a value is of the wrong type ({e}).") from e
  ends = with_stop_ids(
    config.eos_ids, folder, config.vocab_size, config.mask_id
  )
  config = dataclasses.replace(config, eos_ids=ends)
  return Checkpoint(
    folder,
    config,
    load_tokenizer(folder),
    load_template(folder),
    stored_scheme(given),
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


def _spread(value: Any, tensor: names.Tensor, mesh: Mesh) -> jax.Array:
  """Reads each device's slice of a tensor, still in the checkpoint's layout."""
  split = spec(tensor.path)
  axes = [*split, *[None] * (len(tensor.shape) - len(split))]
  where = NamedSharding(mesh, P(*axes[:: -1 if tensor.transposed else 1]))
  return jax.make_array_from_callback(
    tensor.shape, where, lambda index: value[index]
  )


def _place(
  value: Any, tensor: names.Tensor, dtype, int8: bool, mesh: Mesh | None
) -> tuple[dict[str, jax.Array], bool]:
  """The leaves that hold a tensor in the tree, and whether it is finite."""
  name = tensor.path[-1]
  int8 = int8 and name == "kernel"
  leaves = ("kernel", "scale") if int8 else (name,)
  splits = mesh and tuple(
    NamedSharding(mesh, spec((*tensor.path[:-1], leaf))) for leaf in leaves
  )
  arrays, finite = _convert(value, tensor.transposed, dtype, int8, splits)
  return dict(zip(leaves, arrays, strict=True)), bool(finite)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _convert(value, transposed: bool, dtype, int8: bool, splits):
  finite = jnp.isfinite(value).all()
  value = value.T if transposed else value
  if int8:
    quantized = quantize_kernel(value)
    arrays = (quantized["kernel"], quantized["scale"])
  else:
    arrays = (value.astype(dtype),)
  if splits is not None:
    arrays = tuple(map(jax.lax.with_sharding_constraint, arrays, splits))
  return arrays, finite


def _first_bad(value: Any) -> str:
  bad = jnp.argwhere(~jnp.isfinite(jnp.asarray(value)), size=1)[0]
  return f"at {[int(i) for i in bad]}"
