"""Folders that appear whole or not at all, and the files beside the weights."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from nemodiff_jax.errors import UserError
from nemodiff_jax.io.lora import FOLDER as LORA_FOLDER
from nemodiff_jax.io.orbax import MANIFEST

_SUFFIXES = {".json", ".jinja", ".model", ".txt", ".md", ".py", ""}


@contextlib.contextmanager
def new_folder(
  target: str | os.PathLike, overwrite: bool = False
) -> Iterator[Path]:
  """Yields a folder beside `target` that takes its name when all went well.

  Whatever interrupts the work, `target` is then as it was before: absent, or
  the older folder. What an interrupted run left is removed by the next one.

  Raises:
    UserError: the target exists (with overwrite: and is no checkpoint), or
      another process is writing it.
    OSError: it cannot be written.
  """
  target = Path(target).absolute()
  partial = target.with_name(f".{target.name}.partial")
  older = target.with_name(f".{target.name}.older")
  partial.mkdir(parents=True, exist_ok=True)
  with _locked(partial, target):
    try:
      _settle(older, target)
      check_target(target, overwrite)
      _empty(partial)
      yield partial
      _flush(partial)
      if target.exists():
        target.rename(older)
      partial.rename(target)
    finally:
      _settle(older, target)
      shutil.rmtree(partial, ignore_errors=True)


def check_apart(source: Path, target: Path) -> None:
  """Raises a UserError if one of the two lies in the other."""
  here, there = source.resolve(), target.resolve()
  if here == there or here in there.parents or there in here.parents:
    raise UserError(
      f"the target should lie outside the source, got {target} and {source}."
    )


def check_target(target: Path, overwrite: bool) -> None:
  """Raises a UserError if `target` may not be written."""
  if not target.exists():
    return
  if not overwrite:
    raise UserError(f"{target}: exists already; --overwrite replaces it.")
  if not (target / "config.json").exists() and (
    not target.is_dir() or any(target.iterdir())
  ):
    raise UserError(
      f"{target}: exists and is no checkpoint folder, so it is not replaced;"
      " choose another target."
    )


def copy_side_files(source: Path, target: Path, lora: bool = True) -> None:
  """Copies what lies beside the weights, byte by byte.

  That is the config, the tokenizer, the template, the generation settings,
  texts and code, and with `lora` the drafter's folder.
  """
  for path in sorted(source.iterdir()):
    if path.is_file() and _is_side_file(path):
      shutil.copyfile(path, target / path.name)
  if lora and (source / LORA_FOLDER).is_dir():
    shutil.copytree(source / LORA_FOLDER, target / LORA_FOLDER)


def _is_side_file(path: Path) -> bool:
  return (
    path.suffix in _SUFFIXES
    and not path.name.startswith(".")
    and not path.name.endswith(".safetensors.index.json")
    and path.name != MANIFEST
  )


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


def _settle(older: Path, target: Path) -> None:
  """Brings `older` back if nothing took its place, else removes it."""
  if target.exists():
    shutil.rmtree(older, ignore_errors=True)
  elif older.exists():
    older.rename(target)


def _empty(folder: Path) -> None:
  for path in folder.iterdir():
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _flush(folder: Path) -> None:
  """Waits until every file is on the disk, not only in its cache."""
  for path in folder.rglob("*"):
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
