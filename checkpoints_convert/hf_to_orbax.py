r"""Converts a Hugging Face folder to Orbax, tensor by tensor.

    python -m checkpoints_convert.hf_to_orbax --source=HF --target=ORBAX \
        [--quantize=int8]

What lies beside the weights is carried along; the target appears whole or not
at all, and a run that was interrupted can simply be started again.
"""

from absl import flags

from checkpoints_convert import command, convert
from nemodiff_jax.nn.quantize import SCHEMES

_QUANTIZE = flags.DEFINE_enum(
  "quantize",
  "none",
  SCHEMES,
  "int8: store every kernel in int8, with a scale per output channel.",
)
_MERGE_LORA = command.define_merge_lora()
flags.adopt_module_key_flags(command)


def main() -> int:
  """Runs the command; returns the exit code."""
  return command.convert_checkpoint(
    convert.to_orbax, _MERGE_LORA.value, scheme=_QUANTIZE.value
  )


if __name__ == "__main__":
  command.run(main)
