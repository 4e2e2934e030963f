"""Tokens that a folder names beside its tokenizer file.

tokenizer_config.json, and where it has no added_tokens_decoder the older files
special_tokens_map.json and added_tokens.json, as transformers reads them.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemodiff_jax.errors import UserError

CONFIG, MAP, ADDED = (
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
)
_STANDARD = [
  f"{x}_token" for x in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
]
_EXTRA = ("extra_special_tokens", "additional_special_tokens")


@dataclasses.dataclass(frozen=True)
class AddedToken:
  """A token that is matched whole, before a text is cut into pieces.

  Attributes:
    content: its text.
    id: None where the tokenizer file or the next free id decides.
    special: left out of decoded text, and never made of what a person typed.
    lstrip: takes the white space before it.
    rstrip: takes the white space after it.
    single_word: only where no letter or digit is beside it.
    normalized: matched in the normalised text; None: unless special.
  """

  content: str
  id: int | None = None
  special: bool = True
  lstrip: bool = False
  rstrip: bool = False
  single_word: bool = False
  normalized: bool | None = None


@dataclasses.dataclass(frozen=True)
class Named:
  """What is named beside a tokenizer file.

  Attributes:
    tokens: by id, those without one last.
    names: 'bos_token' and the like, to contents.
    config: tokenizer_config.json.
  """

  tokens: tuple[AddedToken, ...] = ()
  names: Mapping[str, str] = dataclasses.field(default_factory=dict)
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_named(folder: Path) -> Named:
  """Tokens and names of a folder.

  Raises:
    UserError: a file of another shape than the tokenizers' writers give it.
  """
  config = read_object(folder / CONFIG)
  given, path = dict(config), folder / CONFIG
  tokens: dict[str, AddedToken] = {}
  if "added_tokens_decoder" in config:
    for at, token in _object(path, config, "added_tokens_decoder").items():
      made = _token(path, token, _id(path, at))
      tokens[made.content] = made
  else:
    given |= read_object(folder / MAP)
    special = {t.content for _, t in _named(path, given)}
    path = folder / ADDED
    for content, at in read_object(path).items():
      made = AddedToken(content, _id(path, at), content in special)
      tokens[content] = made
  names = {}
  for name, token in _named(folder / CONFIG, given):
    if name:
      names[name] = token.content
    known = tokens.get(token.content, token)
    tokens[token.content] = dataclasses.replace(known, special=True)
  last = max((t.id for t in tokens.values() if t.id is not None), default=0)
  by_id = lambda t: last + 1 if t.id is None else t.id
  return Named(tuple(sorted(tokens.values(), key=by_id)), names, config)


def read_json(path: Path) -> Any:
  """What a file holds, None where there is none.

  Raises:
    UserError: it cannot be read.
  """
  try:
    return json.loads(path.read_bytes())
  except FileNotFoundError:
    return None
  except (OSError, ValueError, RecursionError) as e:
    raise UserError(f"{path}: expected JSON ({e}).") from e


def read_object(path: Path) -> dict[str, Any]:
  """An object of a file, empty where there is no file.

  Raises:
    UserError: it cannot be read, or is no object.
  """
  found = read_json(path)
  if found is not None and not isinstance(found, dict):
    raise UserError(f"{path}: expected a JSON object, found {found!r:.60}.")
  return found or {}


def _named(
  path: Path, given: Mapping[str, Any]
) -> Iterator[tuple[str, AddedToken]]:
  """(name, token) of every special token; '' for those without a name.

  In the order in which those without an id get one.
  """
  for name in dict.fromkeys((*_STANDARD, *given)):
    value = given.get(name)
    if name.endswith("_token") and isinstance(value, (str, dict)):
      yield name, _token(path, value)
  for name in _EXTRA:
    value = given.get(name)
    if isinstance(value, dict):
      yield from ((n, _token(path, t)) for n, t in value.items())
    elif isinstance(value, list):
      yield from (("", _token(path, t)) for t in value)


def _token(path: Path, given: Any, at: int | None = None) -> AddedToken:
  if isinstance(given, str):
    return AddedToken(given, at)
  content = given.get("content") if isinstance(given, dict) else None
  if not isinstance(content, str):
    raise UserError(
      f"{path}: expected a token (a text, or an object with 'content'), found"
      f" {given!r:.60}."
    )
  flags = ("special", "lstrip", "rstrip", "single_word", "normalized")
  own = {f: bool(given[f]) for f in flags if given.get(f) is not None}
  if at is not None:  # In a table of ids a token says itself if it is special.
    own.setdefault("special", False)
  return AddedToken(content, at, **own)


def _id(path: Path, given: Any) -> int:
  try:
    return int(given)
  except (TypeError, ValueError) as e:
    raise UserError(
      f"{path}: expected a token's id, found {given!r:.60}."
    ) from e


def _object(path: Path, config: Mapping[str, Any], name: str) -> dict[str, Any]:
  if not isinstance(config[name], dict):
    raise UserError(
      f"{path}: {name} should be an object, found {config[name]!r:.60}."
    )
  return config[name]
