"""Tokenizers of checkpoint folders, read by the library each was made with.

tokenizer.json (tokenizers), tekken.json (tiktoken) and tokenizer.model
(sentencepiece), in this order of preference.
"""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from nemodiff_jax.errors import UserError


class Tokenizer(Protocol):
  """What the rest of the project needs of a tokenizer."""

  def encode(self, text: str) -> list[int]:
    """Ids of a text, with a BOS where the tokenizer's own rule adds one."""
    ...

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids; special tokens are left out."""
    ...

  def id_of(self, token: str) -> int | None:
    """Id of a token by its name, None where there is none."""
    ...


def load_tokenizer(folder: Path) -> Tokenizer | None:
  """The folder's tokenizer, or None where there is none.

  Raises:
    UserError: a tokenizer file that cannot be read.
  """
  for file, make in (
    ("tokenizer.json", HFTokenizer),
    ("tekken.json", TekkenTokenizer),
    ("tokenizer.model", SentencePieceTokenizer),
  ):
    path = folder / file
    if path.exists():
      try:
        return make(path)
      except Exception as e:  # Each library raises its own; all mean this.
        raise UserError(f"{path}: not a readable tokenizer ({e}).") from e
  return None


class HFTokenizer:
  """tokenizer.json; its post-processor decides about BOS."""

  def __init__(self, path: Path):
    import tokenizers

    self._tokenizer = tokenizers.Tokenizer.from_file(str(path))

  def encode(self, text: str) -> list[int]:
    """Ids of a text."""
    return self._tokenizer.encode(text).ids

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids."""
    return self._tokenizer.decode(list(ids), skip_special_tokens=True)

  def id_of(self, token: str) -> int | None:
    """Id of a token by its name."""
    return self._tokenizer.token_to_id(token)


class TekkenTokenizer:
  """tekken.json of Mistral: byte pairs behind a block of special ids.

  Texts begin with <s>. Special tokens written out in a text are plain text.
  """

  def __init__(self, path: Path):
    import tiktoken

    data = json.loads(path.read_text(encoding="utf-8"))
    config = data["config"]
    self._offset = int(config["default_num_special_tokens"])
    size = int(config["default_vocab_size"]) - self._offset
    self._special = {
      entry["token_str"]: int(entry["rank"])
      for entry in data.get("special_tokens") or ()
    }
    self._encoding = tiktoken.Encoding(
      path.stem,
      pat_str=config["pattern"],
      mergeable_ranks={
        base64.b64decode(entry["token_bytes"]): int(entry["rank"])
        for entry in data["vocab"][:size]
      },
      special_tokens={},
    )

  def encode(self, text: str) -> list[int]:
    """Ids of a text."""
    ids = [i + self._offset for i in self._encoding.encode_ordinary(text)]
    bos = self.id_of("<s>")
    return ids if bos is None else [bos, *ids]

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids."""
    plain = [i - self._offset for i in ids if i >= self._offset]
    return self._encoding.decode(plain, errors="replace")

  def id_of(self, token: str) -> int | None:
    """Id of a token by its name."""
    return self._special.get(token)


class SentencePieceTokenizer:
  """tokenizer.model; BOS unless tokenizer_config.json says otherwise."""

  def __init__(self, path: Path):
    import sentencepiece

    self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    config: dict[str, Any] = {}
    beside = path.parent / "tokenizer_config.json"
    if beside.exists():
      config = json.loads(beside.read_text(encoding="utf-8"))
    bos = config.get("add_bos_token", True) and self._model.bos_id() >= 0
    self._bos = [self._model.bos_id()] if bos else []

  def encode(self, text: str) -> list[int]:
    """Ids of a text."""
    return self._bos + self._model.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids."""
    return self._model.decode([int(i) for i in ids])

  def id_of(self, token: str) -> int | None:
    """Id of a token by its name."""
    known = self._model.piece_to_id(token)
    return None if known == self._model.unk_id() else known
