"""What a pass must cost at least: bytes over bandwidth, operations over rate.

    .venv/bin/python -m benchmarks.roofline

A prediction from data sheets (pallas_kernels/chips.py) and shapes, beside which
measurements are to be put; nothing runs. A pass reads every weight but the
embedding table and the keys and values it sees, and does two operations per
weight and query, and four per query, key and head dimension.
"""

import argparse

from benchmarks.programs import Program, weight_bytes
from nemodiff_jax.nn.config import ModelConfig, preset
from pallas_kernels.chips import CHIPS, Chip

# Tokens per forward: published for linear_spec at C = 32 (8B, mean of tasks);
# for quadratic_spec not published, so the break-even is printed.
LINEAR = 5.99
PASSES = {
  "ar": 1,
  "linear_spec, C = 32": 32,
  "quadratic_spec, C = 8": 8 * 9,
  "quadratic_spec, C = 16": 16 * 17,
}


def pass_seconds(
  chip: Chip,
  model: ModelConfig,
  queries: int,
  batch: int = 1,
  context: int = 4096,
  weight_item: int = 2,
) -> float:
  """The least time of a pass of `queries` tokens in each of `batch` rows."""
  weights = weight_bytes(Program(model, "ar").weights()) / 2  # Their number.
  per_key = 2 * model.num_layers * model.num_kv_heads * model.head_dim
  seen = 2 * batch * context * per_key
  wide = model.num_layers * model.num_heads * model.head_dim
  operations = batch * queries * (2 * weights + 4 * context * wide)
  read = weight_item * weights + seen
  return max(read / chip.bandwidth, operations / chip.flops)


def attention_seconds(
  chip: Chip, queries: int, batch: int, context: int
) -> float:
  """The least time of range attention of one layer of a released model."""
  model = preset("8b")
  seen = 2 * 2 * batch * context * model.num_kv_heads * model.head_dim
  wide = model.num_heads * model.head_dim
  operations = 4 * batch * queries * context * wide
  return max(seen / chip.bandwidth, operations / chip.flops)


def single(chip: Chip, name: str) -> None:
  """Batch 1: each mode's pass, alone and against ar's."""
  print(f"\n{chip.name}, {name}, batch 1, context 4096\n")
  print("| pass | queries | ms | / ar pass | int8 ms | tok/s |")
  print("|---|---|---|---|---|---|")
  model = preset(name)
  read = weight_bytes(Program(model, "ar").weights())
  head = 2 * model.vocab_size * model.hidden_size
  print(f"weights read per pass {read / 1e9:.2f} GB, of these the head"
        f" {head / 1e9:.2f}\n")  # fmt: skip
  ar = pass_seconds(chip, model, 1)
  linear = pass_seconds(chip, model, 32)
  for what, queries in PASSES.items():
    least = pass_seconds(chip, model, queries)
    int8 = pass_seconds(chip, model, queries, weight_item=1)
    said = {
      "ar": f"{1 / least:.0f}",
      "linear_spec, C = 32": f"{LINEAR / least:.0f} at {LINEAR} per forward",
    }.get(what, f"as linear_spec at {LINEAR * least / linear:.2f} per forward")
    print(f"| {what} | {queries} | {least * 1e3:.2f} | {least / ar:.2f} |"
          f" {int8 * 1e3:.2f} | {said} |")  # fmt: skip
  small, large = (pass_seconds(chip, model, c * (c + 1)) for c in (8, 16))
  print(f"\nquadratic_spec: C = 16 wins over C = 8 once it yields"
        f" {large / small:.2f} times the tokens per forward.")  # fmt: skip


def batches(chip: Chip, name: str) -> None:
  """Throughput over batch sizes."""
  print(f"\n{chip.name}, {name}, tok/s in the whole at context 1024\n")
  print("| batch | ar | linear_spec, C = 32 |")
  print("|---|---|---|")
  model = preset(name)
  for batch in (1, 2, 4, 8, 16, 32, 64, 128):
    ar, spec = (
      pass_seconds(chip, model, q, batch, context=1024) for q in (1, 32)
    )
    print(f"| {batch} | {batch / ar:.0f} | {LINEAR * batch / spec:.0f} |")


def attention(chip: Chip) -> None:
  """One layer's attention."""
  print(f"\n{chip.name}, range attention of a layer, us\n")
  print("| batch | context | T = 1 | 32 | 72 | 272 |")
  print("|---|---|---|---|---|---|")
  for batch, context in ((1, 4096), (1, 32768), (8, 4096), (8, 32768)):
    times = [
      f"{attention_seconds(chip, t, batch, context) * 1e6:.1f}"
      for t in (1, 32, 72, 272)
    ]
    print(f"| {batch} | {context} | {' | '.join(times)} |")


def main():
  """Prints every table."""
  argparse.ArgumentParser(description=__doc__).parse_args()
  print("Predicted by a roofline, not measured.")
  for name in ("h200", "b200"):
    single(CHIPS[name], "8b")
  for name in ("h200", "b200"):
    batches(CHIPS[name], "14b" if name == "b200" else "8b")
    attention(CHIPS[name])


if __name__ == "__main__":
  main()
