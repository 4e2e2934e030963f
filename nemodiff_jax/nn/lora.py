"""The drafter: a low-rank term on each o_proj, on where it is asked for."""

from flax import struct
from jaxtyping import Array, Bool, Float

from nemodiff_jax.nn.layers import linear


@struct.dataclass
class LoraLayer:
  """Low-rank update of one o_proj.

  Attributes:
    a: [N * H, R].
    b: [R, D], already times alpha / R.
  """

  a: Float[Array, "I R"]
  b: Float[Array, "R D"]


def lora_term(
  x: Float[Array, "B T I"],
  lora: LoraLayer,
  rows: Bool[Array, "B"] | Bool[Array, "B T"] | None,
) -> Float[Array, "B T D"]:
  """X @ a @ b in the rows, or at the places, that are on (None: all)."""
  term = linear(linear(x, lora.a), lora.b)
  if rows is None:
    return term
  rows = rows.reshape(*rows.shape, *(1,) * (3 - rows.ndim))
  return term * rows.astype(term.dtype)
