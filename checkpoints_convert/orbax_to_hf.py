"""Converts an Orbax folder to Hugging Face's layout, tensor by tensor.

    python -m checkpoints_convert.orbax_to_hf --source=ORBAX --target=HF

Names and files are those that the Orbax folder was made from, unless
--shard_size asks for others; without such a past, they are the released ones.
"""

import re

from absl import flags

from checkpoints_convert import command, convert
from nemodiff_jax.errors import UserError

_SHARD_SIZE = flags.DEFINE_string(
  "shard_size",
  None,
  "Most bytes per file, such as 5GB or 500MB. Default: the files of the"
  " checkpoint that the source was made from.",
)
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_MERGE_LORA = command.define_merge_lora()
flags.adopt_module_key_flags(command)


def main() -> int:
  """Runs the command; returns the exit code."""
  return command.convert_checkpoint(
    convert.to_hf, _MERGE_LORA.value, shard_size()
  )


def shard_size() -> int | None:
  """--shard_size in bytes.

  Raises:
    UserError: it is no size.
  """
  text = _SHARD_SIZE.value
  if text is None:
    return None
  match = re.fullmatch(r"(\d+) *([kmg]b|)", text.strip().lower())
  if not match or not int(match[1]):
    raise UserError(f"--shard_size should be such as 5GB, got {text!r}.")
  return int(match[1]) * _UNITS[match[2]]


if __name__ == "__main__":
  command.run(main)
