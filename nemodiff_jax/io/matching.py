"""Which tensors of a folder are the model's, and which are left out."""

from pathlib import Path

from absl import logging

from nemodiff_jax.errors import UserError, nearest
from nemodiff_jax.io import names
from nemodiff_jax.io.orbax import OrbaxTensors
from nemodiff_jax.io.quantized import method_of_tensor, refusal
from nemodiff_jax.io.tensors import TensorFolder

_HEAD = "diffusion_head.weight"


def match(
  folder: Path, tensors: TensorFolder | OrbaxTensors, table: names.Table
) -> dict[str, str]:
  """Name in the folder -> released name, for every tensor of the table.

  Buffers without use are taken out of `tensors.files`: nobody asks for them.

  Raises:
    UserError: a tensor that is missing, unknown, there twice, quantised
      elsewhere, or of another shape.
  """
  for name in [n for n in tensors.files if names.is_leftover(n)]:
    logging.info("skipped the buffer %s", name)
    del tensors.files[name]
  wanted = _named(folder, tensors, table)
  for source, name in wanted.items():
    found, shape = tensors.shape(source), table[name].shape
    if found != shape:
      raise UserError(
        f"{tensors.files[source]}: tensor {source!r} should have shape"
        f" {shape} by config.json, got {found}."
      )
  return wanted


def _named(
  folder: Path, tensors: TensorFolder | OrbaxTensors, table: names.Table
) -> dict[str, str]:
  vision = [s for s in tensors.files if names.is_vision(s)]
  if vision:
    logging.info("skipped %d vision tensors: %s", len(vision), vision)
  wanted: dict[str, str] = {}
  for source, file in tensors.files.items():
    name = names.released_name(source)
    if source in vision:
      continue
    if name == _HEAD and name not in table:
      logging.info("skipped %s: the config ties the embeddings", source)
      continue
    if name not in table:
      method = method_of_tensor(source)
      raise UserError(
        f"{file}: tensor {source!r} says that the weights are"
        f" {refusal(method)}."
        if method
        else f"{folder}: unknown tensor {source!r}{nearest(name, table, 'name')}."
      )
    if name in wanted.values():
      raise UserError(f"{folder}: tensor {name!r} is there twice.")
    wanted[source] = name
  missing = [name for name in table if name not in wanted.values()]
  if missing:
    hint = (
      "; if the head is the embedding, config.json should say"
      " tie_word_embeddings: true"
      if missing == [_HEAD]
      else ""
    )
    raise UserError(
      f"{folder}: {len(missing)} of {len(table)} tensors are missing, first"
      f" {missing[0]!r}{hint}."
    )
  return wanted
