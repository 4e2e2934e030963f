"""tekken.json of Mistral, by the package `tiktoken`."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path

from nemodiff_jax.text.cuts import Cuts
from nemodiff_jax.text.special_tokens import AddedToken, Named

# Files up to version 7 do not list their special tokens: these are they.
_DEFAULT = (
  "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS]"
  " [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CALLS] [IMG] <pad> [IMG_BREAK]"
  " [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT]"
  " [TOOL_CONTENT]"
).split()


class TekkenTokenizer:
  """Byte pairs behind a block of special ids; texts begin with <s>."""

  def __init__(self, path: Path, named: Named):
    import tiktoken

    data = json.loads(path.read_text(encoding="utf-8"))
    config = data["config"]
    self._offset = int(config["default_num_special_tokens"])
    self._size = int(config["default_vocab_size"])
    self._special = _special(data.get("special_tokens"), self._offset)
    self._special |= {
      t.content: t.id
      for t in named.tokens
      if t.id is not None and t.id < self._offset
    }
    self._encoding = tiktoken.Encoding(
      path.stem,
      pat_str=config["pattern"],
      mergeable_ranks={
        base64.b64decode(entry["token_bytes"]): int(entry["rank"])
        for entry in data["vocab"][: self._size - self._offset]
      },
      special_tokens={},
    )
    self._cuts = Cuts(map(AddedToken, self._special), self._special)

  def encode(self, text: str) -> list[int]:
    """Ids of a text."""
    ids = [i + self._offset for i in self._encoding.encode_ordinary(text)]
    bos = self.id_of("<s>")
    return ids if bos is None else [bos, *ids]

  def encode_rendered(
    self, text: str
  ) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and offsets of a text with special tokens in it."""
    ids, offsets = [], []
    for start, end, token in self._cuts.cut(text):
      if token is not None:
        ids.append(token)
        offsets.append((start, end))
        continue
      found = self._encoding.encode_ordinary(text[start:end])
      ids += [i + self._offset for i in found]
      sizes = [len(x) for x in self._encoding.decode_tokens_bytes(found)]
      offsets += _spans(text[start:end], sizes, start)
    return ids, offsets

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids."""
    plain = [i - self._offset for i in ids if self._offset <= i < self._size]
    return self._encoding.decode(plain, errors="replace")

  def id_of(self, token: str) -> int | None:
    """Id of a token by its name."""
    return self._special.get(token)

  def pieces(self) -> list[bytes | None]:
    """Bytes of every id."""
    encoding, special = self._encoding, [None] * self._offset
    count = self._size - self._offset
    return special + [
      encoding.decode_single_token_bytes(i) for i in range(count)
    ]


def _special(listed: list[dict] | None, count: int) -> dict[str, int]:
  """Ids of the special tokens by name, fillers for those without."""
  if listed is None:
    ids = {name: i for i, name in enumerate(_DEFAULT[:count])}
  else:
    ids = {entry["token_str"]: int(entry["rank"]) for entry in listed}
  taken = set(ids.values())
  return ids | {f"<SPECIAL_{i}>": i for i in range(count) if i not in taken}


def _spans(text: str, sizes: list[int], at: int) -> list[tuple[int, int]]:
  """Characters that pieces of so many bytes touch, counted from `at`."""
  owner = [i for i, c in enumerate(text) for _ in c.encode()]
  spans, byte = [], 0
  for size in sizes:
    spans.append((at + owner[byte], at + owner[byte + size - 1] + 1))
    byte += size
  return spans
