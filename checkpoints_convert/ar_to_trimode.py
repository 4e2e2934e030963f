"""Makes a tri-mode checkpoint to train from, out of an autoregressive one.

    python -m checkpoints_convert.ar_to_trimode --source=MINISTRAL3 \
        --target=DIR --mask='<SPECIAL_100>'
    python -m checkpoints_convert.ar_to_trimode --source=MODEL.gguf \
        --target=DIR --mask='<empty_output>'

The source is a Ministral-3 folder (text or multimodal; the image tower is left
out) or a GGUF file of the Llama family. The head becomes diffusion_head (tied
embeddings: a copy of its own), and the config names the mask and the block
size. In ar mode the result decodes as the source does.
"""

from absl import flags

from checkpoints_convert import command, trimode

_MASK = flags.DEFINE_string(
  "mask",
  None,
  "A token that texts never hold, to be the mask: its name, or its id.",
  required=True,
)
_BLOCK_SIZE = flags.DEFINE_integer(
  "block_size", 32, "Default block length of the result."
)
for _name in ("source", "target", "dtype", "dry_run", "overwrite", "debug"):
  flags.declare_key_flag(_name)


def main() -> int:
  """Runs the command; returns the exit code."""
  trimode.ar_to_trimode(
    command.SOURCE.value,
    command.TARGET.value,
    _MASK.value,
    _BLOCK_SIZE.value,
    dtype=command.DTYPE.value,
    overwrite=command.OVERWRITE.value,
    dry_run=command.DRY_RUN.value,
  )
  return 0


if __name__ == "__main__":
  command.run(main)
