"""Makes tri-mode checkpoints out of autoregressive ones, to train from."""

import dataclasses
from pathlib import Path
from typing import Any

from checkpoints_convert import convert, folders, hf_folder
from checkpoints_convert.gguf_source import Gguf
from checkpoints_convert.gguf_tokenizer import write_tokenizer
from nemodiff_jax.errors import UserError
from nemodiff_jax.io import names
from nemodiff_jax.io.checkpoint import open_checkpoint, tensor_table
from nemodiff_jax.io.hf_config import to_hf
from nemodiff_jax.io.hub import local_path
from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.text.tokenizer import load_tokenizer


def ar_to_trimode(
  source: str,
  target: str,
  mask: str,
  block_size: int,
  *,
  dtype: Any = None,
  overwrite: bool = False,
  dry_run: bool = False,
) -> None:
  """Writes a folder in the released layout from an autoregressive model.

  Args:
    source: a Ministral-3 folder or hub name, or a GGUF file of the Llama
      family.
    target: folder to write.
    mask: name or id of a token that texts never hold.
    block_size: default block length of the result.
    dtype: to store; None: that of the source, float32 for GGUF.
    overwrite: replace a checkpoint that is at the target.
    dry_run: only print what would be written.

  Raises:
    UserError: the source cannot be read, the target not written, or the mask
      is no token for it.
  """
  if source.lower().endswith(".gguf"):
    gguf = Gguf(local_path(source))
    read, config, items = gguf.path, gguf.config, gguf.items(dtype)
    side_files = lambda folder: write_tokenizer(gguf, folder)
  else:
    opened = open_checkpoint(source)
    if opened.scheme != "none":
      raise UserError(
        f"{opened.folder}: its weights are {opened.scheme}; a tri-mode"
        " checkpoint is made from the one that they were made from."
      )
    read, config = opened.folder, opened.config
    items = _released(opened, dtype)
    side_files = lambda folder: folders.copy_side_files(opened, folder)
  untied = dataclasses.replace(
    config, tie_embeddings=False, block_size=block_size
  )

  def beside(folder: Path) -> None:
    side_files(folder)
    found = mask_id(mask, folder, config)
    tri_mode = dataclasses.replace(untied, mask_id=found)
    hf_folder.write_json(folder / "config.json", to_hf(tri_mode))

  items = _with_head(items, tensor_table(untied))
  written = local_path(target)
  folders.check_apart(read, written)
  print(f"{source} -> {target}\n{convert.summary(items, convert.to_hf)}")
  convert.build(written, items, convert.to_hf, beside, overwrite, dry_run)


def mask_id(mask: str, folder: Path, config: ModelConfig) -> int:
  """The id of the mask token.

  Raises:
    UserError: it is no token of the folder's tokenizer, or one that begins or
      ends texts.
  """
  tokenizer = load_tokenizer(folder)
  if mask.isdecimal():
    found = int(mask)
  else:
    found = None if tokenizer is None else tokenizer.id_of(mask)
  if found is None or found >= config.vocab_size:
    raise UserError(
      f"--mask={mask} should be a token of the tokenizer, or an id below"
      f" {config.vocab_size}."
    )
  if found in (config.bos_id, *config.eos_ids):
    raise UserError(f"--mask={mask} is a token that begins or ends texts.")
  return found


def _released(opened: Any, dtype: Any) -> list[convert.Item]:
  """The model's tensors under their released names."""
  return [
    dataclasses.replace(item, name=names.released_name(item.name))
    for item in convert.plan(opened, dtype)
    if item.place is not None
  ]


def _with_head(
  items: list[convert.Item], table: dict[str, names.Tensor]
) -> list[convert.Item]:
  """Adds a copy of the embedding as the head, where the two were one."""
  by_name = {item.name: item for item in items}
  for name in table.keys() - by_name.keys():
    embedding = by_name["encoder.embed_tokens.weight"]
    head = dataclasses.replace(embedding, name=name, place=table[name])
    items = [*items, head]
  return items
