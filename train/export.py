"""Writes the trained model in the released layout."""

from pathlib import Path

import jax
import numpy as np

from checkpoints_convert.folders import new_folder
from checkpoints_convert.hf_folder import write_folder, write_lora
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import tensor_table
from nemodiff_jax.io.hf_config import to_hf
from nemodiff_jax.io.lora import FOLDER
from nemodiff_jax.nn.model import Params
from train.stack import unstack_layers
from train.start import Start
from train.watch import say


def export(
  folder: Path, start: Start, base: Params, lora: Params | None, alpha: float
) -> None:
  """Writes the released layout: weights, tokenizer, and the drafter's LoRA.

  A checkpoint that is there already is replaced as a whole.

  Args:
    folder: created if absent.
    start: what the run started from.
    base: parameters of the model, layers stacked.
    lora: the trained LoRA, None where there is none.
    alpha: of the LoRA.

  Raises:
    UserError: the folder cannot be written, or holds something else.
  """
  config = start.config
  params = unstack_layers(jax.device_get(base), config.num_layers)
  try:
    with new_folder(folder, overwrite=True) as new:
      start.copy_side_files(new)
      dtype = jax.numpy.bfloat16
      table = tensor_table(config)
      write_folder(new, to_hf(config), table, params, dtype=dtype)
      if lora is not None:
        a, b = (np.asarray(lora["lora"][x]).swapaxes(1, 2) for x in "ab")
        layers = [*zip(a, b, strict=True)]
        write_lora(new / FOLDER, layers, alpha)
  except OSError as e:
    raise UserError(f"{folder}: could not be written ({e}).") from e
  without = (
    ""
    if lora is not None
    else (", without a drafter (--config=drafter trains one)")
  )
  say(f"exported to {folder}{without}")
