"""The drafter of linear_spec: a LoRA on o_proj, r 128, alpha 512.

Loss as published; learning rate, steps and batch are not published: these are
this project's choice. On a laptop:

    --config=train/configs/drafter.py:small --init_from=embedded
"""

from ml_collections import ConfigDict

from train.configs import base, small


def get_config(size: str = "") -> ConfigDict:
  """The full run, or a 'small' one."""
  small.check_size(size)
  c = base.get_config()
  c.update({"objective": "drafter", "steps": 2_000, "batch_size": 64})
  c.corruption.update({"draft": 1.0, "draft_known_first": 1.0})
  c.corruption.update({"edges": "answer", "shift": 1.0})
  c.optimizer.update({"lr": 1e-4, "final_lr": 1e-5, "weight_decay": 0.0})
  c.data.shards = 8
  c.eval.modes = ("ar", "linear_spec")
  c.checkpoint.every = 200
  if size == "small":
    small.shrink(c)
    c.drafter.update({"rank": 16, "alpha": 64.0, "top": 50})
    c.optimizer.update({"lr": 2e-3, "final_lr": 1e-4})
  return c
