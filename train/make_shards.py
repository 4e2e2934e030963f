"""Writes text as a tokenised shard, for `config.data.source=FOLDER`.

    python -m train.make_shards --source=F.jsonl --checkpoint=DIR --out=FOLDER

A shard NAME is NAME.tokens.npy and NAME.ends.npy. Only {"text"} lines:
conversations are encoded when they are read, since their prompts are not
learned.
"""

import sys
from pathlib import Path

import numpy as np
import tqdm
from absl import app, flags

from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import open_checkpoint
from train.documents import encode_record
from train.sources import Lines

_SOURCE = flags.DEFINE_string("source", None, "JSONL file.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Of the tokenizer.")
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
_ON_ERROR = flags.DEFINE_enum(
  "on_error", "error", ["error", "skip"], "What to do with unusable lines."
)


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


def main(_: list[str]) -> None:
  """Writes the shard."""
  try:
    skipped = write_shard(
      Path(_SOURCE.value), _CHECKPOINT.value, Path(_OUT.value), _ON_ERROR.value
    )
  except UserError as e:
    print(f"error: {e}", file=sys.stderr)
    sys.exit(2)
  print(f"skipped {skipped} lines")


if __name__ == "__main__":
  app.run(main)
