"""The embedded checkpoint: worked arithmetic, from nothing, on a CPU.

Two runs, the second from what the first exports:

    --config=train/configs/tiny.py --export=MODEL
    --config=train/configs/tiny.py:drafter --init_from=MODEL --export=BOTH
"""

from ml_collections import ConfigDict

from train.configs import base


def get_config(stage: str = "joint") -> ConfigDict:
  """The 'joint' run, or that of the 'drafter'."""
  c = base.get_config()
  c.update({"steps": 4700, "batch_size": 8, "accumulate": 1})
  c.update({"length": 256, "noisy_length": 192, "block_lengths": (8, 16, 32)})
  c.update({"dtype": "float32", "remat": "none", "chunk": 256})
  # 1.0 in the run that made it, whose hard tokens counted in the diffusion
  # loss but not in its denominator: 1.75 of today's.
  c.update({"diffusion_weight": 1.75, "hard": "digits", "hard_weight": 2.5})
  c.log_every = 50
  c.corruption.update({"t_min": 0.1, "draft": 0.45, "hard_last": 0.3})
  c.corruption.update({"known_first": 0.7, "draft_known_first": 0.5})
  c.corruption.update({"edges": "answer", "shift": 0.6, "fill": True})
  c.drafter.update({"rank": 16, "alpha": 64.0, "top": 50})
  c.optimizer.update({"name": "muon", "lr": 5e-3, "final_lr": 1e-4})
  c.optimizer.update({"decay": 0.667, "weight_decay": 0.0, "b2": 0.98})
  c.model.update({"block_size": 16, "max_positions": 2048})
  c.data.update({"source": "arithmetic", "shards": 1, "bins": 16})
  c.validation.source = "arithmetic"
  c.eval.update({"source": "arithmetic", "every": 1500, "questions": 20})
  c.eval.max_new_tokens = 112
  c.checkpoint.update({"every": 500, "keep": 2})
  if stage == "drafter":
    _as_drafter(c)
  elif stage != "joint":
    raise ValueError(f"stage should be joint or drafter, got {stage!r}.")
  return c


def _as_drafter(c: ConfigDict) -> None:
  """Changes what the drafter's run does otherwise."""
  c.update({"objective": "drafter", "steps": 400})
  c.corruption.update({"draft": 1.0, "hard_last": 0.0})
  c.corruption.update({"draft_known_first": 1.0, "fill": False})
  c.optimizer.update({"name": "adamw", "lr": 2e-3, "warmup": 20})
  c.eval.update({"every": 200, "questions": 50, "modes": ("ar", "linear_spec")})
