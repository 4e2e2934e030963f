"""Fine-tuning on conversations: prompts are never noised nor learned.

Sequences of 16k, 256 of them a step, WSD 2.5e-6 -> 2.5e-7. On a laptop:

    --config=train/configs/sft.py:small --init_from=embedded
"""

from ml_collections import ConfigDict

from train.configs import base, small


def get_config(size: str = "") -> ConfigDict:
  """The full run, or a 'small' one."""
  small.check_size(size)
  c = base.get_config()
  c.update({"batch_size": 256, "accumulate": 32})
  c.update({"length": 16_384, "noisy_length": 16_384})
  c.optimizer.update({"lr": 2.5e-6, "final_lr": 2.5e-7, "b2": 0.98})
  c.data.shards = 32
  c.eval.max_new_tokens = 512
  c.checkpoint.every = 500
  if size == "small":
    small.shrink(c)
    c.optimizer.update({"lr": 1e-4, "final_lr": 1e-5})
  return c
