r"""lm_eval's own command, with the model `nemodiff` registered.

    python -m nemodiff_jax.cli.lm_eval run --model nemodiff \
        --model_args checkpoint=DIR,mode=linear_spec,block_length=8 --tasks NAME

Arguments are lm_eval's. model_args: checkpoint, mode, block_length, threshold,
steps_per_block, draft_threshold, dtype, lora, quantize, attention,
max_new_tokens, temperature, seed. Likelihoods are by the ar head in every mode.
"""

import sys

from nemodiff_jax import backend
from nemodiff_jax.errors import UserError


def console() -> int:
  """Entry point of the installed command."""
  try:
    from lm_eval.__main__ import cli_evaluate

    from nemodiff_jax.evaluate import lm_eval_model
  except ImportError as e:
    print(
      f"error: lm_eval cannot be imported ({e}): pip install"
      " 'nemodiff-jax[evaluate]'.",
      file=sys.stderr,
    )
    return 2
  del lm_eval_model  # Its import registers the model.
  backend.prepare()
  try:
    cli_evaluate()
  except UserError as e:
    print(f"error: {e}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(console())
