"""Turns a checkpoint argument into a folder on this machine."""

import importlib.resources
import re
from pathlib import Path

from nemodiff_jax.errors import UserError

_HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_FILES = (
  "*.json",
  "*.jinja",
  "*.safetensors",
  "tokenizer.model",
  "linear_spec_lora/*",
  "params/*",
  "other/*",
)


def find_checkpoint(name: str | None) -> Path:
  """The folder of a path, of a hub name, or of the embedded checkpoint.

  Args:
    name: a folder; 'org/name' or 'org/name@revision' on the Hugging Face hub
      (only where no such folder exists); None: the embedded checkpoint.

  Raises:
    UserError: nothing is there, or the hub does not have it.
  """
  if name is None:
    assets = importlib.resources.files("nemodiff_jax") / "assets" / "embedded"
    path = Path(str(assets))
    if not (path / "config.json").exists():
      raise UserError(
        f"{path}: the embedded checkpoint is missing from this installation;"
        " give --checkpoint, or install the package again."
      )
    return path
  path = Path(name).expanduser()
  if path.is_dir():
    return path
  match = _HUB_NAME.fullmatch(name)
  if path.exists() or not match:
    raise UserError(
      f"checkpoint {name!r} should be a folder or a hub name such as"
      " org/name[@revision]; there is no such folder."
    )
  return _download(match[1], match[2])


def _download(repo: str, revision: str | None) -> Path:
  try:
    import huggingface_hub
    from huggingface_hub import errors
  except ImportError as e:
    raise UserError(
      f"checkpoint {repo!r} is no folder here; to fetch it from the hub,"
      " install nemodiff-jax[hub]."
    ) from e
  try:
    return Path(
      huggingface_hub.snapshot_download(
        repo, revision=revision, allow_patterns=list(_FILES)
      )
    )
  except errors.RepositoryNotFoundError as e:
    raise UserError(
      f"hub: there is no repository {repo!r} (or no access)."
    ) from e
  except errors.RevisionNotFoundError as e:
    raise UserError(f"hub: {repo!r} has no revision {revision!r}.") from e
  except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as e:
    raise UserError(f"hub: {repo!r} could not be fetched: {e}") from e
