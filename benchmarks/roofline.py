"""What a pass must cost at least, and what it is predicted to cost.

    .venv/bin/python -m benchmarks.roofline

Predictions from data sheets (pallas_kernels/chips.py), shapes and the
assumptions in `Costs`, beside which measurements are to be put; nothing runs.

The floor: a pass reads every weight but the embedding table and the keys and
values it sees, and does two operations per weight and query, and four per
query, key and head dimension; max(bytes / bandwidth, operations / rate).

The prediction: matrix products, then attention, then what every kernel costs to
be started, one after the other.
"""

import argparse
import dataclasses
import functools
import math

from benchmarks.programs import Program, weight_bytes
from nemodiff_jax.nn.config import ModelConfig, preset
from pallas_kernels.chips import CHIPS, Chip


@dataclasses.dataclass(frozen=True)
class Costs:
  """What no data sheet says. Nothing of it was measured by this project.

  Attributes:
    copy: of the data sheet's bandwidth, what a copy reaches: 4.25 of 4.8 TB/s
      on an H200, and of others as much. Assumed.
    few_rows: of a copy's bandwidth, what a product of few rows reaches.
      Assumed.
    rate: of the data sheet's rate, what a large product reaches. Assumed; the
      rows are filled up to a multiple of 64.
    attention: of the data sheet's rate, what attention reaches where it is
      bound by operations. Between 0.34 to 0.41, causal, by Pallas on an H100
      (github.com/jax-ml/jax/pull/35114), and 0.7, by counting instructions.
    start: seconds of an attention kernel before and after its tiles: the plan,
      barriers, the first load. Assumed.
    launch: seconds from the end of a kernel in a CUDA graph until the next one
      computes. Assumed.
  """

  copy: float = 0.885
  few_rows: float = 0.92
  rate: float = 0.75
  attention: float = 0.50
  start: float = 4e-6
  launch: float = 1e-6


COSTS = Costs()
CARDS = (
  *CHIPS.values(),
  dataclasses.replace(
    CHIPS["h200"], name="NVIDIA H100 80GB HBM3", bandwidth=3_350_000_000_000
  ),
)
ROWS = 64  # Rows of a tile, of products and of attention.
# Kernels per layer and besides, the most that `benchmarks.decode_aot` counts in
# the programs of 3B, 8B and 14B on H200 and B200; the tests hold them to it.
KERNELS = {
  "ar": (18, 28),
  "diffusion": (15, 38),
  "linear_spec": (18, 35),
  "quadratic_spec": (25, 34),
}
# Tokens per forward: published for linear_spec at C = 32 (8B, mean of tasks);
# for quadratic_spec not published, so the break-even is printed.
LINEAR = 5.99
PASSES = {
  "ar": 1,
  "linear_spec, C = 32": 32,
  "quadratic_spec, C = 8": 8 * 9,
  "quadratic_spec, C = 16": 16 * 17,
}


@dataclasses.dataclass(frozen=True)
class Prediction:
  """Seconds of a pass, part by part.

  Attributes:
    products: matrix products with weights.
    attention: range attention of all layers.
    launches: starting the kernels.
  """

  products: float
  attention: float
  launches: float

  @property
  def seconds(self) -> float:
    """The whole pass."""
    return self.products + self.attention + self.launches


def predict(
  chip: Chip,
  model: ModelConfig,
  mode: str,
  queries: int,
  batch: int = 1,
  context: int = 4096,
  weight_item: int = 2,
  kernels: tuple[float, float] | None = None,
) -> Prediction:
  """A pass with its fixed costs.

  Args:
    chip: the device.
    model: architecture.
    mode: decoding mode, of KERNELS.
    queries: tokens of each row.
    batch: rows.
    context: keys that each query sees.
    weight_item: bytes of a weight.
    kernels: per layer and besides; default: those of the mode.
  """
  weights = weights_read(model)
  rows = -(-batch * queries // ROWS) * ROWS
  bandwidth = chip.bandwidth * COSTS.copy
  products = max(
    weight_item * weights / (bandwidth * COSTS.few_rows),
    2 * rows * weights / (chip.flops * COSTS.rate),
  )
  per_layer, others = kernels or KERNELS[mode]
  started = model.num_layers * per_layer + others
  return Prediction(
    products=products,
    attention=model.num_layers
    * predict_attention(chip, model, queries, batch, context),
    launches=started * COSTS.launch,
  )


def predict_attention(
  chip: Chip, model: ModelConfig, queries: int, batch: int, context: int
) -> float:
  """One call of range attention, its tiles spread evenly over the chip.

  Without what merges its parts, which are kernels of their own.
  """
  seen = 2 * 2 * batch * context * model.num_kv_heads * model.head_dim
  group = model.num_heads // model.num_kv_heads
  rows = -(-queries * group // ROWS) * ROWS
  operations = 4 * rows * context * model.head_dim * batch * model.num_kv_heads
  return COSTS.start + max(
    seen / (chip.bandwidth * COSTS.copy),
    operations / (chip.flops * COSTS.attention),
  )


def copy_floor(
  chip: Chip, model: ModelConfig, batch: int = 1, context: int = 4096
) -> float:
  """Seconds to read a pass's weights, keys and values as fast as a copy."""
  bytes_per_second = dataclasses.replace(chip, flops=math.inf)
  return pass_seconds(bytes_per_second, model, 1, batch, context) / COSTS.copy


@functools.cache
def weights_read(model: ModelConfig) -> float:
  """Number of the weights that a pass reads."""
  return weight_bytes(Program(model, "ar").weights()) / 2


def pass_seconds(
  chip: Chip,
  model: ModelConfig,
  queries: int,
  batch: int = 1,
  context: int = 4096,
  weight_item: int = 2,
) -> float:
  """The least time of a pass of `queries` tokens in each of `batch` rows."""
  weights = weights_read(model)
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
  model = preset(name)
  weights = 2 * weights_read(model)
  head = 2 * model.vocab_size * model.hidden_size
  print(f"\n{chip.name}, {name}, batch 1, context 4096; weights read per pass"
        f" {weights / 1e9:.2f} GB, of these the head {head / 1e9:.2f}\n")  # fmt: skip
  print("| pass | queries | floor ms | predicted ms | products | attention |"
        " launches | / ar pass | copy floor / time | int8 ms | tok/s |")  # fmt: skip
  print("|---" * 11 + "|")
  floor = copy_floor(chip, model)
  times = {}
  for what, queries in PASSES.items():
    mode = what.split(",")[0]
    p = predict(chip, model, mode, queries)
    int8 = predict(chip, model, mode, queries, weight_item=1)
    times[what] = p.seconds
    if what == "ar":
      said = f"{1 / p.seconds:.0f}"
    elif mode == "linear_spec":
      said = f"{LINEAR / p.seconds:.0f} at {LINEAR} per forward"
    else:
      even = LINEAR * p.seconds / times["linear_spec, C = 32"]
      said = f"as linear_spec at {even:.2f} per forward"
    cells = (p.seconds, p.products, p.attention, p.launches)
    cells = " | ".join(f"{x * 1e3:.2f}" for x in cells)
    least = pass_seconds(chip, model, queries) * 1e3
    ratio = p.seconds / times["ar"]
    print(f"| {what} | {queries} | {least:.2f} | {cells} |"
          f" {ratio:.2f} | {floor / p.seconds:.2f} |"
          f" {int8.seconds * 1e3:.2f} | {said} |")  # fmt: skip
  small, large = (times[f"quadratic_spec, C = {c}"] for c in (8, 16))
  print(f"\nquadratic_spec: C = 16 wins over C = 8 once it yields"
        f" {large / small:.2f} times the tokens per forward.")  # fmt: skip
  shares = [
    f"{k}: {floor / predict(chip, model, 'ar', 1, kernels=(k, other)).seconds:.2f}"
    for other in [KERNELS["ar"][1]]
    for k in (23, 20, 18, 16, 12)
  ]
  print(f"ar, copy floor / time by kernels per layer: {', '.join(shares)}")


def batches(chip: Chip, name: str) -> None:
  """Throughput over batch sizes."""
  print(f"\n{chip.name}, {name}, tok/s in the whole at context 1024\n")
  print("| batch | ar: at most | predicted |"
        " linear_spec, C = 32: at most | predicted |")  # fmt: skip
  print("|---|---|---|---|---|")
  model = preset(name)
  for batch in (1, 2, 4, 8, 16, 32, 64, 128):
    cells = []
    for mode, queries, tokens in (("ar", 1, 1), ("linear_spec", 32, LINEAR)):
      least = pass_seconds(chip, model, queries, batch, 1024)
      likely = predict(chip, model, mode, queries, batch, 1024).seconds
      cells += [f"{batch * tokens / t:.0f}" for t in (least, likely)]
    print(f"| {batch} | {' | '.join(cells)} |")


def attention(chip: Chip) -> None:
  """One layer's attention."""
  print(f"\n{chip.name}, range attention of a layer, us: at least, predicted\n")
  print("| batch | context | T = 1 | 32 | 72 | 272 |")
  print("|---|---|---|---|---|---|")
  model = preset("8b")
  for batch, context in ((1, 4096), (1, 32768), (8, 4096), (8, 32768)):
    times = [
      f"{attention_seconds(chip, t, batch, context) * 1e6:.1f},"
      f" {predict_attention(chip, model, t, batch, context) * 1e6:.1f}"
      for t in (1, 32, 72, 272)
    ]
    print(f"| {batch} | {context} | {' | '.join(times)} |")


def main():
  """Prints every table."""
  argparse.ArgumentParser(description=__doc__).parse_args()
  print("Predicted by a roofline, not measured.")
  print(f"Assumed: {COSTS}")
  print(f"Kernels per layer and besides: {KERNELS}")
  for name in ("h200", "b200"):
    single(CHIPS[name], "8b")
  for name in ("h200", "b200"):
    batches(CHIPS[name], "14b" if name == "b200" else "8b")
    attention(CHIPS[name])


if __name__ == "__main__":
  main()
