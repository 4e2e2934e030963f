"""Flags of commands that run many settings, and lists of numbers."""

from absl import flags

from nemodiff_jax.decode.config import MODES as ALL
from nemodiff_jax.errors import UserError

MODES = flags.DEFINE_list("modes", list(ALL), "Decoding modes.")
BLOCK_LENGTHS = flags.DEFINE_list(
  "block_lengths", [], "Block lengths to run. Default: the mode's own; fixed."
)


def numbers(flag: flags.FlagHolder, kind: type) -> list:
  """The numbers of a list flag.

  Raises:
    UserError: something else stands among them.
  """
  try:
    return [kind(text) for text in flag.value]
  except ValueError as e:
    raise UserError(
      f"--{flag.name} should be numbers separated by commas, got"
      f" {','.join(flag.value)!r}."
    ) from e
