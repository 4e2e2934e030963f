"""Folders that appear whole or not at all, and the files beside the weights."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import Checkpoint
from nemodiff_jax.io.lora import FOLDER as LORA_FOLDER
from nemodiff_jax.io.lora import read_peft
from nemodiff_jax.io.orbax import MANIFEST, is_orbax
from nemodiff_jax.text.chat import TEMPLATES

# The same weights again, as some repositories hold them.
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5"}
_UNITS = ("B", "kB", "MB", "GB")


def sized(count: int) -> str:
  """A number of bytes in words, as '7.66 GB'."""
  power = min(len(_UNITS) - 1, (len(str(count)) - 1) // 3)
  return f"{count / 1000**power:.4g} {_UNITS[power]}"


def check_space(folder: Path, needed: int) -> None:
  """Raises UserError if the disk has fewer bytes than a new folder needs."""
  free = shutil.disk_usage(folder).free
  if free < needed:
    raise UserError(
      f"{folder.parent}: {sized(needed)} are needed, but only {sized(free)} are"
      " free on this disk."
    )


@contextlib.contextmanager
def new_folder(
  target: str | os.PathLike, overwrite: bool = False
) -> Iterator[Path]:
  """Yields a folder beside `target` that takes its name when all went well.

  Whatever interrupts the work, `target` is then as it was before: absent, or
  the older folder. What a killed run left is removed by the next one.

  Raises:
    UserError: the target exists (with overwrite: and is no checkpoint), or
      another process is writing it.
    OSError: it cannot be written.
  """
  target = Path(target).absolute()
  partial = target.with_name(f".{target.name}.partial")
  with _made(partial), _locked(partial, target):
    try:
      _settle(target)
      check_target(target, overwrite)
      for path in partial.iterdir():
        _remove(path)
      yield partial
      _flush(partial)
      if os.path.lexists(target):
        target.rename(_older(target))
      partial.rename(target)
      _sync(target.parent)
    except BaseException:
      shutil.rmtree(partial, ignore_errors=True)
      raise
    finally:
      _settle(target)


def check_apart(source: Path, target: Path) -> None:
  """Raises a UserError if one of the two lies in the other."""
  here, there = source.resolve(), target.resolve()
  if here == there or here in there.parents or there in here.parents:
    raise UserError(
      f"the target should lie outside the source, got {target} and {source}."
    )


def check_target(target: Path, overwrite: bool) -> None:
  """Raises a UserError if `target` may not be written."""
  if not os.path.lexists(target):
    return
  if not overwrite:
    raise UserError(f"{target}: exists already; --overwrite replaces it.")
  if not _is_checkpoint(target) and (
    not target.is_dir() or any(target.iterdir())
  ):
    raise UserError(
      f"{target}: exists and is no checkpoint folder (config.json and weights),"
      " so it is not replaced; choose another target."
    )


def copy_side_files(
  source: Checkpoint, target: Path, lora: bool = True
) -> None:
  """Copies every file beside the weights, byte by byte.

  Of folders only the templates', and with `lora` the drafter's.

  Raises:
    UserError: the drafter does not fit the model.
  """
  for path in sorted(source.folder.iterdir()):
    if path.is_file() and _is_side_file(path):
      shutil.copyfile(path, target / path.name)
  templates = source.folder / TEMPLATES
  if templates.is_dir():
    shutil.copytree(templates, target / TEMPLATES)
  drafter = source.folder / LORA_FOLDER
  if lora and drafter.is_dir():
    read_peft(drafter, source.config)
    shutil.copytree(drafter, target / LORA_FOLDER)


def _is_side_file(path: Path) -> bool:
  return (
    path.suffix not in _WEIGHTS
    and not path.name.startswith(".")
    and not path.name.endswith((".safetensors.index.json", ".bin.index.json"))
    and path.name != MANIFEST
  )


def _is_checkpoint(folder: Path) -> bool:
  weights = is_orbax(folder) or any(folder.glob("*.safetensors"))
  return weights and (folder / "config.json").exists()


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
  """Makes a folder; parents that are new and empty at the end go again."""
  new = [parent for parent in folder.parents if not parent.exists()]
  try:
    folder.mkdir(parents=True, exist_ok=True)
    yield
  finally:
    for parent in new:
      with contextlib.suppress(OSError):  # Not empty.
        parent.rmdir()


@contextlib.contextmanager
def _locked(folder: Path, target: Path) -> Iterator[None]:
  handle = os.open(folder, os.O_RDONLY)
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield
  except BlockingIOError as e:
    raise UserError(f"{target}: another process is writing it.") from e
  finally:
    os.close(handle)


def _older(target: Path) -> Path:
  return target.with_name(f".{target.name}.older")


def _settle(target: Path) -> None:
  """Brings the older folder back if nothing took its place, else removes it.

  Under another name first: half removed, it must never be brought back.
  """
  older, removed = _older(target), target.with_name(f".{target.name}.removed")
  _remove(removed)
  if not os.path.lexists(target):
    with contextlib.suppress(FileNotFoundError):
      older.rename(target)
  elif os.path.lexists(older):
    older.rename(removed)
    _remove(removed)


def _remove(path: Path) -> None:
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)


def _flush(folder: Path) -> None:
  """Waits until all of a folder is on the disk, not only in its cache."""
  for path in folder.rglob("*"):
    _sync(path)
  _sync(folder)


def _sync(path: Path) -> None:
  handle = os.open(path, os.O_RDONLY)
  os.fsync(handle)
  os.close(handle)
