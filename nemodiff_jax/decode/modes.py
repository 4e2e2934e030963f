"""The decoding modes by name."""

from nemodiff_jax.decode import ar, diffusion, linear_spec, quadratic_spec
from nemodiff_jax.decode.mode import Mode

MODES: dict[str, Mode] = {
  module.MODE.name: module.MODE
  for module in (ar, diffusion, linear_spec, quadratic_spec)
}
