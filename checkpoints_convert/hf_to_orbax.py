"""Converts a Hugging Face folder to Orbax, tensor by tensor.

    python -m checkpoints_convert.hf_to_orbax --source=HF --target=ORBAX

What lies beside the weights is carried along; the target appears whole or not
at all, and a run that was interrupted can simply be started again.
"""

from absl import flags

from checkpoints_convert import command, convert

flags.adopt_module_key_flags(command)


def main() -> int:
  """Runs the command; returns the exit code."""
  return command.convert_checkpoint(convert.to_orbax)


if __name__ == "__main__":
  command.run(main)
