"""What a conversion does to the numbers of a tensor."""

import numpy as np

from checkpoints_convert.lazy import places
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.lora import Peft


def check_finite(
  value: np.ndarray, what: str, so: str = "the checkpoint is damaged"
) -> None:
  """Raises a UserError that names the first NaN or Inf, if there is one."""
  value = np.atleast_1d(value)
  count, first = places(value.shape, lambda rows: ~np.isfinite(value[rows]))
  if count:
    raise UserError(f"{what} holds NaN or Inf at {[*first]}; {so}.")


def cast(value: np.ndarray, dtype: np.dtype, what: str) -> np.ndarray:
  """The value in another dtype.

  Raises:
    UserError: a number is too large for it.
  """
  if value.dtype == dtype:
    return value
  with np.errstate(over="ignore"):
    value = value.astype(dtype)
  check_finite(value, what, f"the number there is too large for {dtype}")
  return value


def merge_lora(value: np.ndarray, peft: Peft, layer: int) -> np.ndarray:
  """A kernel [out, in] of a layer plus its LoRA, in float32."""
  a, b = (x.astype(np.float32) for x in peft.layers[layer])
  with np.errstate(over="ignore", invalid="ignore"):  # Checked by the caller.
    return value.astype(np.float32) + np.float32(peft.scale) * (b @ a)
