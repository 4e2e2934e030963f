"""AR -> tri-mode at 8B, by the published recipe; 26 billion tokens.

Sequences of 4096, 512 of them a step, AdamW, WSD 1e-5 -> 3e-6, weight decay
0.1, clip 1.0, blocks of 64 in training. Betas, eps, warm-up, decay and steps
are those of Megatron-Bridge's recipe. Give the data and the base:

    --init_from=Ministral-3-8B-Base --config.data.source=FOLDER

On the published 256 GPUs each group of 4 (mesh.tensor) computes 1 row at a
time. On 32 it computes 8, or 4 with --config.accumulate=16.
"""

from ml_collections import ConfigDict

from train.configs import base


def get_config() -> ConfigDict:
  """`base`, which holds the rest of the recipe, at 8B."""
  c = base.get_config()
  c.update({"steps": 12_500, "block_lengths": (64,)})
  c.optimizer.warmup = 125
  c.mesh.update({"data": -1, "fsdp": 8, "tensor": 4})
  c.model.update({"mask_id": 100, "block_size": 32})
  c.checkpoint.every = 500
  return c
