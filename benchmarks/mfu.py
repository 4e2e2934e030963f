"""What a training step is predicted to take on an H200, and its MFU.

    python -m benchmarks.mfu

One row of L clean tokens, doubled, on one device, by data sheets, shapes and
the assumptions below; nothing runs and nothing of it was measured. The parts
of a step are added up:

- matrix products: layers forward, again (full remat) and twice backward; the
  head three times, as its gradients are made in the forward pass. At
  `COSTS.rate` of the peak.
- attention in XLA: a turn of queries meets every clean key before its end, chunk
  by chunk. What a product gives is written once and read once, and the sums of
  the queries are read and written for every chunk; at `COSTS.copy` of the
  bandwidth, or `COSTS.rate` of the peak if that takes longer. The keys and their
  gradients are left out: a turn is longer than a chunk.
- attention by tokamax: forward tiles of keys that are seen, backward all of
  them, in seven products instead of five; at `COSTS.attention` of the peak,
  backward too. Their memory traffic is left out: it hides behind operations.
- the rest (norms, rotation, gates, residuals): every input and output of a
  layer's products read and written once, forward, again and twice backward.

The row is one document, all of its blocks are learned. Left out: the local
term, the optimiser (once in 64 microbatches), starts of kernels, and what
travels between devices, which is said beside the table.
"""

import dataclasses

from benchmarks.roofline import COSTS
from nemodiff_jax.nn.config import ModelConfig, preset
from pallas_kernels.chips import CHIPS
from train.flops import model_operations

CHIP = CHIPS["h200"]
BLOCK = 64
TILE = 128  # Queries and keys of a tile of tokamax's kernels.
DEVICES, LINK = 8, 450e9  # Of a node; bytes per second that a GPU sends.
FORWARD, BACKWARD = 2, 1  # Runs of the attention of a layer, with full remat.


@dataclasses.dataclass(frozen=True)
class Kernel:
  """An implementation of attention.

  Attributes:
    name: of it.
    chunk: keys per step of the XLA form; 0: tokamax.
    turn: queries per turn of the XLA form; 0: all.
    skips: whether tokamax's backward skips tiles, as it does not today.
  """

  name: str
  chunk: int = 0
  turn: int = 0
  skips: bool = False


KERNELS = (
  Kernel("XLA, all x 128 (before)", 128),
  Kernel("XLA, 2048 x 512", 512, 2048),
  Kernel("tokamax"),
  Kernel("tokamax, if its backward skipped", skips=True),
)


def seen_pairs(length: int) -> int:
  """Pairs of query and clean key: blocks see what is before, texts are causal."""
  return length * (length - BLOCK) // 2 + length * (length + 1) // 2


def tile_pairs(length: int, tile: int) -> int:
  """Pairs that are computed if queries are taken `tile` at a time.

  Up to the last key that one of them sees, which is full tiles of keys.
  """
  return length * (length + tile)


def xla_pairs(length: int, kernel: Kernel) -> int:
  """Pairs that the XLA form computes in a row."""
  if not kernel.turn:
    return 2 * length * length
  return tile_pairs(length, kernel.turn)


def xla_bytes(c: ModelConfig, length: int, kernel: Kernel) -> tuple[int, int]:
  """Bytes that the XLA form moves in a layer, forward and backward."""
  pairs = c.num_heads * xla_pairs(length, kernel)
  # Forward: scores in float32, weights in bfloat16. Backward: scores and the
  # gradient of the weights in float32, and both in bfloat16.
  forward, backward = 2 * (4 + 2), 2 * (4 + 4 + 2 + 2)
  # For each chunk the float32 sums of the queries, forward the product that is
  # added to them too (backward XLA adds it within the product).
  sums = 2 * 4 * c.head_dim
  # Queries in bfloat16; backward they and the output's gradient, twice each.
  reads = 2 * c.head_dim
  chunks = pairs // kernel.chunk
  return (
    pairs * forward + chunks * (2 * sums + reads),
    pairs * backward + chunks * (sums + 4 * reads),
  )


def attention_seconds(
  c: ModelConfig, length: int, kernel: Kernel
) -> tuple[float, float]:
  """Of one layer and one run, forward and backward."""
  width = 2 * c.num_heads * c.head_dim  # Operations of a pair in a product.
  if kernel.chunk:
    rate, speed = COSTS.rate * CHIP.flops, COSTS.copy * CHIP.bandwidth
    one, two = xla_bytes(c, length, kernel)
    pairs = xla_pairs(length, kernel)
    return (
      max(2 * width * pairs / rate, one / speed),
      max(5 * width * pairs / rate, two / speed),
    )
  rate = COSTS.attention * CHIP.flops
  some = tile_pairs(length, TILE)
  back = some if kernel.skips else 2 * length * length
  return 2 * width * some / rate, 7 * width * back / rate


def layer_weights(c: ModelConfig) -> int:
  """Of the matrices of one layer."""
  heads = c.head_dim * (c.num_heads + c.num_kv_heads)
  return 2 * c.hidden_size * heads + 3 * c.hidden_size * c.intermediate_size


def seconds(c: ModelConfig, length: int, kernel: Kernel) -> dict[str, float]:
  """Parts of a step of one row."""
  head = c.hidden_size * c.vocab_size
  products = 4 * c.num_layers * layer_weights(c) + 3 * head
  heads = c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
  ends = 4 * c.hidden_size + heads + 3 * c.intermediate_size
  forward, backward = attention_seconds(c, length, kernel)
  return {
    "products": 2 * products * 2 * length / (COSTS.rate * CHIP.flops),
    "forward": FORWARD * c.num_layers * forward,
    "backward": BACKWARD * c.num_layers * backward,
    "rest": 4 * c.num_layers * 2 * length * (2 + 2) * ends
    / (COSTS.copy * CHIP.bandwidth),
  }  # fmt: skip


def mfu(c: ModelConfig, length: int, kernel: Kernel) -> float:
  """By the operations that the metric of a run counts."""
  attended = seen_pairs(length) + length * BLOCK
  work = model_operations(c, 2 * length, attended)
  return work / (sum(seconds(c, length, kernel).values()) * CHIP.flops)


def wire_seconds(c: ModelConfig) -> float:
  """Weights gathered twice in bfloat16, gradients summed in float32."""
  sent = (2 * 2 + 4) * c.num_layers * layer_weights(c)
  return sent * (DEVICES - 1) / DEVICES / LINK


def main() -> None:
  print("| model | L | attention | products, s | attention forward, s |"
        " attention backward, s | rest, s | step, s | MFU, % |\n"
        "|---|---|---|---|---|---|---|---|---|")  # fmt: skip
  for size in ("3b", "8b"):
    for length in (4096, 16384):
      for kernel in KERNELS:
        parts = seconds(c := preset(size), length, kernel)
        print(
          f"| {size} | {length} | {kernel.name} |"
          f" {' | '.join(f'{x:.2f}' for x in parts.values())} |"
          f" {sum(parts.values()):.2f} | {100 * mfu(c, length, kernel):.0f} |"
        )
  for size in ("3b", "8b"):
    c = preset(size)
    print(f"{size}: {wire_seconds(c):.2f} s on the wire of {DEVICES} GPUs.")
  # Heads of all sizes are alike, and so is what attention moves.
  c = preset("8b")
  for length in (4096, 16384):
    for kernel in KERNELS:
      if kernel.chunk:
        one, two = xla_bytes(c, length, kernel)
        print(f"L = {length}, {kernel.name}: {one / 1e9:.1f} GB forward,"
              f" {two / 1e9:.1f} GB backward per layer")  # fmt: skip


if __name__ == "__main__":
  main()
