"""Plans a conversion, and carries it out tensor by tensor."""

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm
from absl import logging

from checkpoints_convert import folders, hf_folder, int8, values
from checkpoints_convert.lazy import Lazy
from checkpoints_convert.orbax_folder import write_params
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import Checkpoint, open_checkpoint
from nemodiff_jax.io.hub import local_path
from nemodiff_jax.io.lora import FOLDER as LORA_FOLDER
from nemodiff_jax.io.lora import Peft, read_peft
from nemodiff_jax.io.names import Tensor
from nemodiff_jax.io.orbax import MANIFEST, OTHER, PARAMS, whole_manifest


@dataclasses.dataclass(frozen=True)
class Item:
  """One tensor of a conversion.

  Attributes:
    name: in the Hugging Face layout.
    file: that holds it there.
    value: what to write, shaped as there.
    place: where the model has it; None: carried along, no part of the model.
  """

  name: str
  file: str
  value: Lazy
  place: Tensor | None


# Writes the tensors into a folder.
Layout = Callable[[Path, Sequence[Item]], None]


def convert(
  source: str,
  target: str,
  layout: Layout,
  *,
  dtype: Any = None,
  scheme: str = "none",
  shard_size: int | None = None,
  merge_lora: str | None = None,
  overwrite: bool = False,
  dry_run: bool = False,
) -> None:
  """Converts a folder, whatever its layout, and what lies beside its weights.

  Args:
    source: a folder, or a name on the hub.
    target: folder to write.
    layout: `to_orbax` or `to_hf`.
    dtype: to store; None keeps each tensor's own.
    scheme: 'int8' to quantise every kernel; what is quantised stays so.
    shard_size: most bytes of a file; None keeps the files of the source.
    merge_lora: PEFT folder to add to the weights, 'own' for the source's; its
      drafter is then not carried along.
    overwrite: replace a checkpoint that is at the target.
    dry_run: only print what would be written.

  Raises:
    UserError: the source cannot be read, or the target not written.
  """
  opened = open_checkpoint(source)
  peft = None
  if merge_lora is not None:
    own = opened.folder / LORA_FOLDER
    lora = own if merge_lora == "own" else local_path(merge_lora)
    peft = read_peft(lora, opened.config)
  items = plan(opened, dtype, peft)
  quantize = opened.scheme != scheme == "int8"
  if quantize:
    items = _quantized(items)
  if shard_size is not None:
    items = reshard(items, shard_size)

  def beside(folder: Path) -> None:
    folders.copy_side_files(opened, folder, lora=peft is None)
    if quantize:
      int8.mark(folder)

  written = local_path(target)
  folders.check_apart(opened.folder, written)
  print(f"{source} -> {target}\n{summary(items, layout)}")
  build(written, items, layout, beside, overwrite, dry_run)


def plan(
  opened: Checkpoint, dtype: Any = None, merge: Peft | None = None
) -> list[Item]:
  """Every tensor of a checkpoint, those of the model first.

  Args:
    opened: Hugging Face or Orbax.
    dtype: to store; None keeps each tensor's own.
    merge: added to o_proj; the sum is in float32.

  Raises:
    UserError: as `Checkpoint.load_params`; NaN and Inf only when read; a
      quantised checkpoint that is to change.
  """
  if opened.scheme != "none" and (dtype or merge):
    raise UserError(
      f"{opened.folder}: its weights are {opened.scheme}; a dtype or a LoRA to"
      " merge needs the checkpoint it was made from."
    )
  tensors, wanted = opened.match_tensors()
  table = opened.table
  manifest = whole_manifest(opened.folder, tensors.files)
  order = {name: i for i, name in enumerate(table)}
  place = lambda name: order.get(wanted.get(name, ""), len(order))
  items = []
  for name in sorted(tensors.files, key=place):
    released = wanted.get(name)
    stored = np.dtype(dtype or tensors.dtype(name))
    path = tensors.files[name]
    file = path.name if path.is_file() else hf_folder.SINGLE

    def read(name=name, released=released, stored=stored):
      ((_, value),) = tensors.read([name])
      what = f"{tensors.files[name]}: tensor {name!r}"
      values.check_finite(value, what)
      if merge and released and released.endswith("o_proj.weight"):
        value = values.merge_lora(value, merge, int(released.split(".")[2]))
        values.check_finite(value, what, "so large is what the LoRA adds")
      return values.cast(value, stored, what)

    items.append(
      Item(
        name,
        manifest.get(name, {}).get("file", file),
        Lazy(tensors.shape(name), stored, read),
        table[released] if released else None,
      )
    )
  return items


def to_orbax(folder: Path, items: Sequence[Item]) -> None:
  """Writes params/, and other/ for tensors that are no part of the model."""
  params: dict[str, Any] = {}
  for item in items:
    if item.place is not None:
      node = params
      for key in item.place.path[:-1]:
        node = node.setdefault(key, {})
      node[item.place.path[-1]] = _in_tree(item.value, item.place.transposed)
  write_params(folder / PARAMS, params)
  other = {item.name: item.value for item in items if item.place is None}
  if other:
    write_params(folder / OTHER, other)


def to_hf(folder: Path, items: Sequence[Item]) -> None:
  """Writes the items into the safetensors files that they name."""
  files: dict[str, dict[str, Lazy]] = {}
  for item in items:
    files.setdefault(item.file, {})[item.name] = item.value
  hf_folder.write_files(folder, files)


def reshard(items: Sequence[Item], size: int) -> list[Item]:
  """Names new files of at most `size` bytes, or of one larger tensor."""
  parts: list[dict[str, Lazy]] = [{}]
  held = 0
  for item in items:
    if parts[-1] and held + item.value.nbytes > size:
      parts.append({})
      held = 0
    parts[-1][item.name] = item.value
    held += item.value.nbytes
  files = {
    name: file
    for file, part in hf_folder.named_files(parts).items()
    for name in part
  }
  return [dataclasses.replace(i, file=files[i.name]) for i in items]


def build(
  target: Path,
  items: Sequence[Item],
  layout: Layout,
  beside: Callable[[Path], None],
  overwrite: bool = False,
  dry_run: bool = False,
) -> None:
  """Writes a folder that appears whole or not at all.

  Args:
    target: the folder.
    items: its tensors.
    layout: `to_orbax` or `to_hf`.
    beside: writes config, tokenizer and the like into a folder.
    overwrite: replace an older checkpoint.
    dry_run: only try what does not take the tensors.

  Raises:
    UserError: the target may not or cannot be written, or an item not read.
  """
  if dry_run:
    folders.check_target(target, overwrite)
    with tempfile.TemporaryDirectory() as folder:
      beside(Path(folder))
    return
  total = sum(item.value.nbytes for item in items)
  try:
    with folders.new_folder(target, overwrite) as folder:
      folders.check_space(folder, total)
      beside(folder)
      sums: dict[str, str] = {}
      # A terminal only: a log has no use for a bar.
      with tqdm.tqdm(
        total=total, unit="B", unit_scale=True, disable=None
      ) as bar:
        layout(folder, [_watched(item, sums, bar) for item in items])
      tensors = {
        i.name: {"file": i.file, "sha256": sums[i.name]} for i in items
      }
      hf_folder.write_json(folder / MANIFEST, {"tensors": tensors})
  except OSError as e:
    raise UserError(
      f"{target}: could not be written ({e}); nothing of it is left behind."
    ) from e
  logging.info("%s: %d tensors, %s", target, len(items), folders.sized(total))


def summary(items: Sequence[Item], layout: Layout) -> str:
  """What `build` would write: files or items, with tensors and sizes."""
  groups: dict[str, list[Lazy]] = {}
  for item in items:
    name = PARAMS if item.place else OTHER
    key = f"{name}/" if layout is to_orbax else item.file
    groups.setdefault(key, []).append(item.value)
  lines = []
  for key, group in groups.items():
    kinds = ", ".join(sorted({str(v.dtype) for v in group}))
    size = folders.sized(sum(v.nbytes for v in group))
    lines.append(f"  {key}: {len(group)} tensors, {size}, {kinds}")
  return "\n".join(lines)


def _quantized(items: Sequence[Item]) -> list[Item]:
  """The items, each kernel in int8 with its scale behind it."""
  out = []
  for item in items:
    place = item.place
    if place is None or place.path[-1] != "kernel":
      out.append(item)
      continue
    kernel, scale = int8.quantized(item.value)
    where = Tensor((*place.path[:-1], "scale"), scale.shape, False)
    out += [
      dataclasses.replace(item, value=kernel),
      Item(f"{item.name}_scale", item.file, scale, where),
    ]
  return out


def _in_tree(value: Lazy, transposed: bool) -> Lazy:
  if not transposed:
    return value
  return Lazy(value.shape[::-1], value.dtype, lambda: value.read().T)


def _watched(item: Item, sums: dict[str, str], bar: Any) -> Item:
  """The item; reading it notes its checksum and moves the bar."""

  def read():
    value = np.asarray(item.value.read(), order="C")
    data = hf_folder.bytes_of(value)
    sums[item.name] = hashlib.sha256(data).hexdigest()
    bar.update(len(data))
    return value

  return dataclasses.replace(
    item, value=dataclasses.replace(item.value, read=read)
  )
