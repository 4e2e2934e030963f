"""Tokenizers of checkpoint folders, read by the library each was made with.

tokenizer.json (tokenizers), tekken.json (tiktoken) and tokenizer.model
(sentencepiece), in this order of preference.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from nemodiff_jax.errors import UserError
from nemodiff_jax.text.sentencepiece_file import SentencePieceTokenizer
from nemodiff_jax.text.special_tokens import Named, read_named
from nemodiff_jax.text.tekken_file import TekkenTokenizer
from nemodiff_jax.text.tokenizer_json import JsonTokenizer

_STOPS = (KeyboardInterrupt, SystemExit, GeneratorExit)
Offsets = list[tuple[int, int]]


class Tokenizer(Protocol):
  """What the rest of the project needs of a tokenizer."""

  def encode(self, text: str) -> list[int]:
    """Ids of what a person typed: control tokens written out stay text.

    A BOS is put in front where the tokenizer's own rule has one; nothing is
    put behind.
    """
    ...

  def encode_rendered(self, text: str) -> list[int]:
    """Ids of what a template rendered: control tokens by name, none added."""
    ...

  def encode_rendered_offsets(self, text: str) -> tuple[list[int], Offsets]:
    """As `encode_rendered`, and the [start, end) of each in the text.

    Tokens that share a character all span it.
    """
    ...

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids; special tokens and ids of none are left out."""
    ...

  def id_of(self, token: str) -> int | None:
    """Id of a token by its name, None where there is none."""
    ...

  def pieces(self) -> list[bytes | None]:
    """Bytes that each id adds to a text; None: a special token, or no text."""
    ...


class File(Protocol):
  """A tokenizer file, read; its errors are those of its library."""

  def encode(self, text: str) -> list[int]:
    """As `Tokenizer.encode`."""
    ...

  def encode_rendered(self, text: str) -> tuple[list[int], Offsets]:
    """As `Tokenizer.encode_rendered_offsets`."""
    ...

  def decode(self, ids: Sequence[int]) -> str:
    """As `Tokenizer.decode`."""
    ...

  def id_of(self, token: str) -> int | None:
    """As `Tokenizer.id_of`."""
    ...

  def pieces(self) -> list[bytes | None]:
    """As `Tokenizer.pieces`."""
    ...


def load_tokenizer(folder: Path) -> Tokenizer | None:
  """The folder's tokenizer, or None where there is none.

  Raises:
    UserError: a tokenizer file that cannot be read. Files beside it that are
      of a wrong shape are told of when a text is to be encoded.
  """
  for file, make in (
    ("tokenizer.json", JsonTokenizer),
    ("tekken.json", TekkenTokenizer),
    ("tokenizer.model", SentencePieceTokenizer),
  ):
    path = folder / file
    if not path.exists():
      continue
    broken = None
    try:
      named = read_named(folder)
    except UserError as e:
      named, broken = Named(), e
    with _told(f"{path}: not a readable tokenizer"):
      return FileTokenizer(path, make(path, named), broken)
  return None


class FileTokenizer:
  """A tokenizer file whose every failure is a UserError."""

  def __init__(self, path: Path, file: File, broken: UserError | None = None):
    self._path = path
    self._file = file
    self._broken = broken  # What is wrong with the files beside it.

  def encode(self, text: str) -> list[int]:
    """Ids of what a person typed."""
    with self._encoding(text):
      return self._file.encode(text)

  def encode_rendered(self, text: str) -> list[int]:
    """Ids of what a template rendered."""
    return self.encode_rendered_offsets(text)[0]

  def encode_rendered_offsets(self, text: str) -> tuple[list[int], Offsets]:
    """Ids of what a template rendered, and where in it they are."""
    with self._encoding(text):
      return self._file.encode_rendered(text)

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids."""
    with _told(f"{self._path}: ids cannot be decoded"):
      return self._file.decode([int(i) for i in ids])

  def id_of(self, token: str) -> int | None:
    """Id of a token by its name."""
    with _told(f"{self._path}: not a token's name"):
      return self._file.id_of(token)

  def pieces(self) -> list[bytes | None]:
    """Bytes of every id."""
    with _told(f"{self._path}: pieces cannot be read"):
      return self._file.pieces()

  @contextlib.contextmanager
  def _encoding(self, text: str) -> Iterator[None]:
    if self._broken is not None:
      raise self._broken
    if any("\ud800" <= c <= "\udfff" for c in text):
      raise UserError(
        "the prompt holds half of a surrogate pair, which is no character.",
        "bad_utf8",
      )
    with _told(f"{self._path}: the text cannot be encoded"):
      yield


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
  """Makes a UserError of anything a library raises, a panic of Rust too."""
  try:
    yield
  except (*_STOPS, UserError):
    raise
  except BaseException as e:  # Each library raises its own; all mean this.
    raise UserError(f"{what} ({type(e).__name__}: {e}).") from e
