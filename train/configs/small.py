"""Sizes of a run on a laptop, from the embedded checkpoint."""

from ml_collections import ConfigDict


def shrink(c: ConfigDict) -> None:
  """Changes a configuration to some minutes of arithmetic on a CPU."""
  c.update({"steps": 100, "batch_size": 8, "accumulate": 1})
  c.update({"length": 256, "noisy_length": 192, "block_lengths": (16,)})
  c.update({"dtype": "float32", "remat": "none", "chunk": 256})
  c.log_every = 10
  c.optimizer.warmup = 10
  c.data.update({"source": "arithmetic", "shards": 1, "bins": 16})
  c.validation.update({"source": "arithmetic", "every": 50, "batches": 2})
  c.eval.update({"source": "arithmetic", "every": 100, "questions": 8})
  c.eval.max_new_tokens = 112
  c.checkpoint.every = 50


def check_size(size: str) -> None:
  """Raises a ValueError unless a size is '' or 'small'."""
  if size not in ("", "small"):
    raise ValueError(f"size should be small, got {size!r}.")
