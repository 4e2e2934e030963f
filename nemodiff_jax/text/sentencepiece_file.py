"""tokenizer.model, by the package `sentencepiece`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nemodiff_jax.text.cuts import Cuts
from nemodiff_jax.text.pieces import piece_bytes
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
    unknown = self._model.unk_id()  # It shows as the model says.
    self._special = set(self._added.values()) - {*self._shown, unknown}
    # What the model itself matches whole, though it is special.
    self._matched = Cuts(
      (
        AddedToken(name)
        for name, i in self._added.items()
        if i in self._special and i in self._model.encode(name)
      ),
      self._added,
    )
    bos = named.config.get("add_bos_token", True) and self._model.bos_id() >= 0
    self._bos = [self._model.bos_id()] if bos else []

  def encode(self, text: str) -> list[int]:
    """Ids of a text."""
    ids = list(self._bos)
    for start, end, token in self._plain.cut(text):
      if token is not None:
        ids.append(token)
        continue
      first, *others = self._matched.apart(text[start:end])
      ids += self._piece(first, start == 0)[0]
      for part in others:
        ids += self._bare.encode(part)
    return ids

  def encode_rendered(
    self, text: str
  ) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and offsets of a text with control tokens in it."""
    ids, offsets = [], []
    for start, end, token in self._all.cut(text):
      if token is not None:
        ids.append(token)
        offsets.append((start, end))
        continue
      found, spans = self._piece(text[start:end], start == 0)
      ids += found
      offsets += [(start + a, start + b) for a, b in spans]
    return ids, offsets

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids."""
    return "".join(self._texts(ids))

  def id_of(self, token: str) -> int | None:
    """Id of a token by its name."""
    if token in self._added:
      return self._added[token]
    known = self._model.piece_to_id(token)
    return None if known == self._model.unk_id() else known

  def pieces(self) -> list[bytes | None]:
    """Bytes of every id."""
    found: dict[int, bytes] = {i: s.encode() for i, s in self._shown.items()}
    for i in set(range(self._size)) - {*found, *self._special}:
      if not (self._model.is_control(i) or self._model.is_unknown(i)):
        found[i] = piece_bytes(self._model.id_to_piece(i))
    count = max([self._size, *(i + 1 for i in self._added.values())])
    return [found.get(i) for i in range(count)]

  def _tokens(self, named: Named) -> tuple[list[AddedToken], dict[str, int]]:
    """Control pieces and the tokens named beside the model, with their ids."""
    model = self._model
    control = lambda i: model.is_control(i) or model.is_unknown(i)
    ids = {model.id_to_piece(i): i for i in range(self._size) if control(i)}
    tokens = {name: AddedToken(name) for name in ids}
    free = max([self._size, *(t.id + 1 for t in named.tokens if t.id)])
    for token in named.tokens:
      name = token.content
      tokens[name] = token
      at = token.id
      if at is None:
        known = model.piece_to_id(name)
        at = known if model.id_to_piece(known) == name else free
        free += at == free
      ids[name] = at
    return list(tokens.values()), ids

  def _piece(self, text: str, first: bool) -> tuple[list[int], list[Any]]:
    """Ids and offsets of a text without tokens that are matched whole."""
    model, space = self._model, 0
    if not (self._prefix and self._legacy):
      model = self._bare
      space = int(self._prefix and first and not text.startswith((" ", "▁")))
    found = model.encode(" " * space + text, return_type="offset_mapping")
    spans = [
      (max(a - space, 0), max(b - space, 0)) for a, b in found["offsets"]
    ]
    for i in range(len(spans) - 2, -1, -1):  # Bytes of one character share it.
      a, b = spans[i]
      if a == b == spans[i + 1][0]:
        spans[i] = a, spans[i + 1][1]
    return found["ids"], spans

  def _texts(self, ids: Sequence[int]) -> Iterator[str]:
    """Texts of added tokens that are shown, and of the parts between them.

    The space before a text is taken off the first part alone.
    """
    model, run = self._model, []
    for i in ids:
      if i in self._shown:
        yield model.decode(run)
        yield self._shown[i]
        model, run = self._bare, []
      elif 0 <= i < self._size and i not in self._special:
        run.append(i)
    yield model.decode(run)
