"""Token files: texts that were tokenised ahead, by `train.make_shards`.

A file of texts NAME.jsonl becomes NAME.tokens.npy (all documents, one after
another) and NAME.ends.npy (one past each document's last token).
"""

from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import open_checkpoint
from train.documents import encode_record
from train.sources import Lines


class TokenFiles:
  """The documents of a folder's token files."""

  def __init__(self, folder: Path, vocab_size: int):
    self._tokens, self._ends = [], []
    for path in sorted(folder.glob("*.tokens.npy")):
      ends = Path(str(path).replace(".tokens.npy", ".ends.npy"))
      try:
        self._tokens.append(np.load(path, mmap_mode="r"))
        self._ends.append(np.load(ends))
      except (OSError, ValueError) as e:
        raise UserError(f"{path}: not a readable shard ({e}).") from e
      if not len(self._ends[-1]) or self._ends[-1][-1] != len(self._tokens[-1]):
        raise UserError(
          f"{ends}: the last document should end at {len(self._tokens[-1])},"
          " the number of tokens; the shard is cut short."
        )
    if not self._tokens:
      raise UserError(f"{folder}: expected shards NAME.tokens.npy, found none.")
    self._vocab = vocab_size
    self._first = np.cumsum([0, *(len(e) for e in self._ends)])
    self.skipped: dict[str, str] = {}

  def __len__(self) -> int:
    return int(self._first[-1])

  def __getitem__(self, index: int) -> dict[str, Any]:
    """A document's ids."""
    shard = int(np.searchsorted(self._first, index, "right")) - 1
    i = int(index - self._first[shard])
    ends = self._ends[shard]
    ids = np.asarray(self._tokens[shard][ends[i - 1] if i else 0 : ends[i]])
    where = f"document {i} of shard {shard}"
    if ids.size and int(ids.max()) >= self._vocab:
      return {
        "where": where,
        "error": f"holds id {ids.max()}, out of the"
        f" vocabulary of {self._vocab}",
      }
    return {"where": where, "ids": ids}

  def refuse(self, where: str, why: str) -> None:
    """A file that does not fit the model cannot be used in part."""
    raise UserError(f"{where}: {why}; tokenise the data with this model's.")


def write_shard(
  source: Path, checkpoint: str | None, out: Path, on_error: str
) -> int:
  """Writes one file's shard and returns the number of skipped lines.

  Raises:
    UserError: a line, checkpoint or folder that cannot be used.
  """
  opened = open_checkpoint(checkpoint)
  eos = opened.config.eos_ids
  lines = Lines([source], on_error)
  documents = []
  for i in tqdm.trange(len(lines), unit="line"):
    record = lines[i]
    try:
      if "messages" in record:
        raise UserError("expected 'text': shards hold no conversations.")
      document = encode_record(record, opened.tokenizer, None, eos)
    except UserError as e:
      lines.refuse(record["where"], str(e).rstrip("."))
      continue
    documents.append(document["tokens"])
  kind = np.uint16 if opened.config.vocab_size <= 1 << 16 else np.uint32
  try:
    out.mkdir(parents=True, exist_ok=True)
    tokens = np.concatenate(documents).astype(kind)
    np.save(out / f"{source.stem}.tokens.npy", tokens)
    ends = np.cumsum([d.size for d in documents], dtype=np.int64)
    np.save(out / f"{source.stem}.ends.npy", ends)
  except OSError as e:
    raise UserError(f"{out}: could not be written ({e}).") from e
  return len(lines.skipped)
