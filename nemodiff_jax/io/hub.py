"""Turns a checkpoint argument into a folder on this machine."""

import glob
import importlib.resources
import re
from collections.abc import Iterable
from pathlib import Path

from nemodiff_jax.errors import UserError
from nemodiff_jax.io.tensors import INDEX, SINGLE, is_sharded, read_index

_HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
# All that is read but the shards, which the index names. In a pattern * stands
# for folders too.
_FILES = (
  "config.json",
  "generation_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "tekken.json",
  "tokenizer.model",
  "chat_template.json",
  "*.jinja",
  SINGLE,
  INDEX,
  "linear_spec_lora/*",
  "conversion.json",
  "params/*",
  "other/*",
)
EMBEDDED = "embedded"
_UNREAD = (  # Of these: other folders' templates, and a LoRA's other forms.
  "[!a]*/*.jinja",  # Not additional_chat_templates/.
  "linear_spec_lora/*/*",
  "linear_spec_lora/*.bin",
)


def find_checkpoint(name: str | None) -> Path:
  """The folder of a path, of a hub name, or of the embedded checkpoint.

  Args:
    name: a folder; 'org/name' or 'org/name@revision' on the Hugging Face hub
      (only where no such folder exists, and never where it begins with '.',
      '/' or '~'); None, and 'embedded' where there is no such folder: the
      embedded checkpoint.

  Raises:
    UserError: nothing is there, or the hub does not have it.
  """
  if name is None:
    return _embedded()
  path = local_path(name)
  try:
    if path.is_dir():
      return path
    found = path.exists()
  except (OSError, ValueError) as e:  # Too long, or no name of a file at all.
    raise UserError(f"checkpoint {name!r} cannot be a folder ({e}).") from e
  if found:
    advice = (
      "convert it with checkpoints_convert.ar_to_trimode"
      if path.suffix == ".gguf"
      else "give the folder that it lies in"
    )
    raise UserError(
      f"checkpoint {name!r} should be a folder or a hub name, got a file;"
      f" {advice}."
    )
  if name == EMBEDDED:
    return _embedded()
  match = _HUB_NAME.fullmatch(name)
  if name.startswith((".", "/", "~")) or not match:
    raise UserError(
      f"checkpoint {name!r} should be a folder or a hub name such as"
      " org/name[@revision]; there is no such folder."
    )
  return _download(match[1], match[2])


def _embedded() -> Path:
  """The folder of the checkpoint that is installed with the package."""
  path = Path(str(importlib.resources.files("nemodiff_jax") / "assets"))
  path /= EMBEDDED
  if not (path / "config.json").exists():
    raise UserError(
      f"{path}: the embedded checkpoint is missing from this installation;"
      " give --checkpoint, or install the package again."
    )
  return path


def local_path(name: str) -> Path:
  """A path as it was typed, '~' spelled out.

  Raises:
    UserError: '~' of somebody who has no home here.
  """
  try:
    return Path(name).expanduser()
  except RuntimeError as e:
    raise UserError(f"{name!r}: there is no such folder ({e}).") from e


def _download(repo: str, revision: str | None) -> Path:
  """Fetches what is read of a repository, in two steps at most."""
  try:
    import huggingface_hub
    from huggingface_hub import errors
  except ImportError as e:
    raise UserError(
      f"checkpoint {repo!r} is no folder here; to fetch it from the hub,"
      " install nemodiff-jax[hub]."
    ) from e

  def fetch(patterns: Iterable[str]) -> Path:
    return Path(
      huggingface_hub.snapshot_download(
        repo,
        revision=revision,
        allow_patterns=list(patterns),
        ignore_patterns=list(_UNREAD),
      )
    )

  beside = f"hub: there is no folder {repo!r} here, and"
  try:
    folder = fetch(_FILES)
    if is_sharded(folder):
      shards = sorted(set(read_index(folder / INDEX).values()))
      folder = fetch(map(glob.escape, shards))
    return folder
  except errors.RepositoryNotFoundError as e:
    raise UserError(
      f"{beside} there is no repository {repo!r} (or no access)."
    ) from e
  except errors.RevisionNotFoundError as e:
    raise UserError(f"hub: {repo!r} has no revision {revision!r}.") from e
  except errors.HFValidationError as e:
    raise UserError(f"{beside} it can be no repository ({e}).") from e
  except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as e:
    why = (str(e).splitlines() or [type(e).__name__])[0]
    raise UserError(
      f"{beside} {repo!r} could not be fetched ({why}); without a network, give"
      " a folder."
    ) from e
