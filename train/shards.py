"""Writes tokenised shards."""

from pathlib import Path

import numpy as np
import tqdm

from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import open_checkpoint
from train.documents import encode_record
from train.sources import Lines


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
