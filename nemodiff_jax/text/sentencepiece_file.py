"""tokenizer.model, by the package `sentencepiece`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nemodiff_jax.text.cuts import Cuts
from nemodiff_jax.text.special_tokens import AddedToken, Named

# Behind a serialised model this says normalizer_spec.add_dummy_prefix = false.
_NO_PREFIX = b"\x1a\x02\x18\x00"


class SentencePieceTokenizer:
  """tokenizer.model; BOS unless tokenizer_config.json says otherwise.

  A space is put before a text, and before every part of a rendered text
  between two control tokens, where the model has been made so; with 'legacy'
  false before the first part alone.
  """

  def __init__(self, path: Path, named: Named):
    import sentencepiece

    self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    proto = self._model.serialized_model_proto() + _NO_PREFIX
    self._bare = sentencepiece.SentencePieceProcessor(model_proto=proto)
    self._size = self._model.vocab_size()
    self._legacy = named.config.get("legacy") is not False
    self._prefix = named.config.get("add_prefix_space") is not False
    self._prefix &= self._model.encode("a") != self._bare.encode("a")
    tokens, self._added = self._tokens(named)
    self._all = Cuts(tokens, self._added)
    self._plain = Cuts((t for t in tokens if not t.special), self._added)
    self._shown = {i: name for name, i in self._plain.ids.items()}
    self._special = set(self._added.values()) - set(self._shown)
    bos = named.config.get("add_bos_token", True) and self._model.bos_id() >= 0
    self._bos = [self._model.bos_id()] if bos else []

  def encode(self, text: str) -> list[int]:
    """Ids of a text."""
    return self._bos + self._encode(self._plain, text)[0]

  def encode_rendered(
    self, text: str
  ) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and offsets of a text with control tokens in it."""
    return self._encode(self._all, text)

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids."""
    return "".join(self._texts(ids))

  def id_of(self, token: str) -> int | None:
    """Id of a token by its name."""
    if token in self._added:
      return self._added[token]
    known = self._model.piece_to_id(token)
    return None if known == self._model.unk_id() else known

  def _tokens(self, named: Named) -> tuple[list[AddedToken], dict[str, int]]:
    """Control pieces and the tokens named beside the model, with their ids."""
    pieces = map(self._model.id_to_piece, range(self._size))
    ids = {p: i for i, p in enumerate(pieces) if self._model.is_control(i)}
    tokens = {name: AddedToken(name) for name in ids}
    free = max([self._size, *(t.id + 1 for t in named.tokens if t.id)])
    for token in named.tokens:
      tokens[token.content] = token
      at = token.id
      if at is None:
        known = self._model.piece_to_id(token.content)
        unknown = known == self._model.unk_id()
        named_so = self._model.id_to_piece(known) == token.content
        at = ids.get(token.content, free if unknown and not named_so else known)
        free += at == free
      ids[token.content] = at
    return list(tokens.values()), ids

  def _encode(
    self, cuts: Cuts, text: str
  ) -> tuple[list[int], list[tuple[int, int]]]:
    ids, offsets = [], []
    for start, end, token in cuts.cut(text):
      if token is not None:
        ids.append(token)
        offsets.append((start, end))
        continue
      found, spans = self._piece(text[start:end], start == 0)
      ids += found
      offsets += [(start + a, start + b) for a, b in spans]
    return ids, offsets

  def _piece(self, text: str, first: bool) -> tuple[list[int], list[Any]]:
    """Ids and offsets of a text without tokens that are matched whole."""
    if self._prefix and self._legacy:
      found = self._model.encode(text, return_type="offset_mapping")
      return found["ids"], found["offsets"]
    space = int(self._prefix and first and not text.startswith(" "))
    found = self._bare.encode(" " * space + text, return_type="offset_mapping")
    return found["ids"], [
      (max(a - space, 0), max(b - space, 0)) for a, b in found["offsets"]
    ]

  def _texts(self, ids: Sequence[int]) -> Iterator[str]:
    """Texts of the parts between added tokens that are shown, and of those."""
    run: list[int] = []
    for i in ids:
      if i in self._special or not (i in self._shown or 0 <= i < self._size):
        continue
      if i not in self._shown:
        run.append(i)
        continue
      yield self._model.decode(run)
      yield self._shown[i]
      run = []
    yield self._model.decode(run)
