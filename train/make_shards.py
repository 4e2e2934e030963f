"""Writes text as a tokenised shard, for `config.data.source=FOLDER`.

    python -m train.make_shards --source=F.jsonl --checkpoint=DIR --out=FOLDER

A shard NAME is NAME.tokens.npy and NAME.ends.npy. Only {"text"} lines:
conversations are encoded when they are read, since their prompts are not
learned.
"""

import sys
from pathlib import Path

from absl import app, flags

from nemodiff_jax.errors import UserError
from train.token_files import write_shard

_SOURCE = flags.DEFINE_string("source", None, "JSONL file.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Of the tokenizer.")
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
_ON_ERROR = flags.DEFINE_enum(
  "on_error", "error", ["error", "skip"], "What to do with unusable lines."
)


def main(_: list[str]) -> None:
  """Writes the shard."""
  try:
    source, out = (Path(x).expanduser() for x in (_SOURCE.value, _OUT.value))
    skipped = write_shard(source, _CHECKPOINT.value, out, _ON_ERROR.value)
  except UserError as e:
    print(f"error: {e}", file=sys.stderr)
    sys.exit(2)
  print(f"skipped {skipped} lines")


if __name__ == "__main__":
  app.run(main)
