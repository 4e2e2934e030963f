"""Compares two checkpoint folders, whatever their layouts.

    python -m checkpoints_convert.verify --source=HF --target=ORBAX

Names, shapes, dtypes and values of all tensors, each folder against its own
checksums, the configs, and the logits of a short prompt. Exit code 0 if all
agree, else 2.
"""

from absl import flags

from checkpoints_convert import command, compare
from nemodiff_jax.io.checkpoint import open_checkpoint

_PROMPT = flags.DEFINE_string(
  "prompt", "The capital of France is", "Whose logits are compared."
)
_LOGITS = flags.DEFINE_bool(
  "logits", True, "Compare logits too: needs the memory of a float32 model."
)
for _name in ("source", "target", "debug"):
  flags.declare_key_flag(_name)


def main() -> int:
  """Runs the command; returns the exit code."""
  found = list(
    compare.compare(
      open_checkpoint(command.SOURCE.value),
      open_checkpoint(command.TARGET.value),
      _PROMPT.value if _LOGITS.value else None,
    )
  )
  for line in found:
    print(f"differs: {line}")
  print("different" if found else "same")
  return 2 if found else 0


if __name__ == "__main__":
  command.run(main)
