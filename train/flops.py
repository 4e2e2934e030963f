"""Operations of a training step, for MFU."""

import jax

from nemodiff_jax.nn.config import ModelConfig

# bfloat16 operations per second of a device, dense, by its makers' data sheets.
PEAK = {
  "A100": 312e12,
  "H100": 989e12,
  "H200": 989e12,
  "B200": 2250e12,
}


def model_operations(
  config: ModelConfig, positions: float, attended: float
) -> float:
  """Operations of a joint or causal step, without recomputation.

  Two per weight and position of every matrix product, and four per pair of
  query and key and width of a head (scores, and sums of values); three times
  that for forward and backward. The embedding is a lookup and counts nothing.

  Args:
    config: the model.
    positions: that the step computes, clean and noisy.
    attended: keys that its queries see, summed over the queries.
  """
  c = config
  matrices = c.num_layers * (
    2 * c.hidden_size * c.head_dim * (c.num_heads + c.num_kv_heads)
    + 3 * c.hidden_size * c.intermediate_size
  )
  matrices += c.hidden_size * c.vocab_size
  attention = 4 * c.num_layers * c.num_heads * c.head_dim * attended
  return 3 * (2 * matrices * positions + attention)


def peak_operations() -> float | None:
  """Of one device per second, None where it is not known."""
  kind = jax.devices()[0].device_kind
  return next((peak for name, peak in PEAK.items() if name in kind), None)
