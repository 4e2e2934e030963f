"""What settings may be; errors name the setting and what was found."""

from typing import Any

from nemodiff_jax.errors import UserError


def check_passes(
  threshold: float | None, steps: int | None, drafts: float
) -> None:
  """Raises a UserError if one of them is out of range."""
  if threshold is not None:
    number("threshold", threshold)
    if not 0 < threshold <= 1:
      raise UserError(
        f"threshold should lie in (0, 1] or be none, got {threshold}."
      )
  if steps is not None:
    whole("steps_per_block", steps, 1)
  number("draft_threshold", drafts)
  if not 0 <= drafts <= 1:
    raise UserError(f"draft_threshold should lie in [0, 1], got {drafts}.")


def whole(name: str, value: Any, least: int) -> None:
  """Raises a UserError unless the value is a whole number, at least `least`."""
  if not isinstance(value, int) or isinstance(value, bool) or value < least:
    raise UserError(
      f"{name} should be a whole number of at least {least}, got {value!r}."
    )


def number(name: str, value: Any) -> None:
  """Raises a UserError unless the value is a number."""
  if not isinstance(value, (int, float)) or isinstance(value, bool):
    raise UserError(f"{name} should be a number, got {value!r}.")
  if value != value:
    raise UserError(f"{name} should be a number, got NaN.")
