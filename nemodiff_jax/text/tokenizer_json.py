"""tokenizer.json, by the package `tokenizers`."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemodiff_jax.text.cuts import Cuts
from nemodiff_jax.text.pieces import level_bytes, piece_bytes
from nemodiff_jax.text.special_tokens import AddedToken, Named

_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")


class JsonTokenizer:
  """tokenizer.json; its post-processor decides about BOS."""

  def __init__(self, path: Path, named: Named):
    import tokenizers

    self._rendered = tokenizers.Tokenizer.from_file(str(path))
    # How the file was last used is no part of the tokenizer.
    self._rendered.no_truncation()
    self._rendered.no_padding()
    self._add(named)
    self._post_processor = self._rendered.post_processor
    untyped: Any = self._rendered
    untyped.post_processor = None  # It would cut spaces off the offsets.

  @functools.cached_property
  def _special(self) -> Cuts:
    added = self._rendered.get_added_tokens_decoder()
    ids = {t.content: i for i, t in added.items() if t.special}
    return Cuts(map(AddedToken, ids), ids)

  @functools.cached_property
  def _typed(self) -> Any:
    """The same with the post-processor, for what a person typed."""
    import tokenizers

    typed = tokenizers.Tokenizer.from_str(self._rendered.to_str())
    if self._post_processor is not None:
      typed.post_processor = self._post_processor
    return typed

  def encode(self, text: str) -> list[int]:
    """Ids of a text, with what the post-processor puts in front."""
    typed = self._typed
    typed.encode_special_tokens = True  # As text. Pickling forgets it.
    found = typed.encode(text)
    added = found.special_tokens_mask
    if all(added):  # No text: what is put in front of any.
      found = typed.encode("a")
      return found.ids[: found.special_tokens_mask.index(0)]
    front = added.index(0)
    ids = [i for i, more in zip(found.ids, added, strict=True) if not more]
    written = {i for _, _, i in self._special.cut(text)}
    if not written.isdisjoint(ids):  # The model itself has them as pieces.
      parts = self._special.apart(text)
      alone = [typed.encode(p, add_special_tokens=False).ids for p in parts]
      ids = [i for part in alone for i in part]
    return [*found.ids[:front], *ids]

  def encode_rendered(
    self, text: str
  ) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and offsets of a text with special tokens in it."""
    found = self._rendered.encode(text, add_special_tokens=False)
    return found.ids, found.offsets

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids."""
    return self._rendered.decode(list(ids), skip_special_tokens=True)

  def id_of(self, token: str) -> int | None:
    """Id of a token by its name."""
    return self._rendered.token_to_id(token)

  def pieces(self) -> list[bytes | None]:
    """Bytes of every id."""
    levels = "ByteLevel" in str(self._rendered.decoder)
    read = level_bytes if levels else piece_bytes
    vocab = self._rendered.get_vocab(with_added_tokens=False)
    found: dict[int, bytes | None] = {i: read(p) for p, i in vocab.items()}
    for i, token in self._rendered.get_added_tokens_decoder().items():
      found[i] = None if token.special else token.content.encode()
    return [found.get(i) for i in range(max(found) + 1)]

  def _add(self, named: Named) -> None:
    """Adds the tokens that only the files beside it name."""
    import tokenizers

    known = {
      t.content: t for t in self._rendered.get_added_tokens_decoder().values()
    }
    for token in named.tokens:
      flags = {f: getattr(token, f) for f in _FLAGS}
      if flags["normalized"] is None:
        flags["normalized"] = not token.special
      have = known.get(token.content)
      if have is not None:
        if token.id is None and have.special:
          continue  # Only its name is told.
        if all(getattr(have, f) == flags[f] for f in _FLAGS):
          continue
      made = tokenizers.AddedToken(token.content, **flags)
      if token.special:
        self._rendered.add_special_tokens([made])
      else:
        self._rendered.add_tokens([made])
