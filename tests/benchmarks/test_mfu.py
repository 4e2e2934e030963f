"""Predictions of a training step, by hand."""

import dataclasses

import numpy as np
import pytest

from benchmarks import mfu
from nemodiff_jax.nn.config import preset
from pallas_kernels.range_attention.chunks import CHUNK, WIDE

BEFORE, NOW, TOKAMAX = mfu.KERNELS[:3]


def test_pairs_are_those_of_the_mask():
  """Eight blocks of 64 before their own place, then 512 causal tokens."""
  length = 512
  query = np.arange(length)
  ends = np.concatenate([query // 64 * 64, query + 1])
  assert mfu.seen_pairs(length) == ends.sum()
  for tile in (128, 256):
    last = ends.reshape(-1, tile).max(1)
    computed = (-(-last // 128) * 128 * tile).sum()
    assert mfu.tile_pairs(length, tile) == computed


def test_bytes_of_a_chunk_by_hand():
  """Eight clean tokens: 16 queries of 2 heads of 4, two chunks of 4 keys."""
  config = dataclasses.replace(preset("tiny"), num_heads=2, head_dim=4)
  scores, weights = 16 * 2 * 4 * 4, 16 * 2 * 4 * 2
  result = total = 16 * 2 * 4 * 4
  queries = d_out = 16 * 2 * 4 * 2
  forward = 2 * (scores + weights + result + total) + queries
  backward = 2 * (2 * scores + 2 * weights + total)
  backward += 2 * (queries + d_out)
  found = mfu.xla_bytes(config, 8, mfu.Kernel("", 4))
  assert found == (2 * forward, 2 * backward)


@pytest.mark.parametrize(
  ("kernel", "queries", "written"),
  [(BEFORE, 8192, (456, 530)), (NOW, 2048, (260, 435))],
)
def test_what_a_step_of_keys_writes(kernel, queries, written):
  """MiB, as counted in the loops of the program compiled for an H200."""
  chunks = mfu.xla_pairs(4096, kernel) / kernel.chunk / queries
  read = queries * 32 * 128 * 2
  moved = mfu.xla_bytes(preset("8b"), 4096, kernel)
  for found, reads, want in zip(moved, (1, 4), written, strict=True):
    writes = (found / chunks - reads * read) / 2
    assert writes / 2**20 == pytest.approx(want, rel=0.05)


def test_a_step_of_8b_by_hand():
  layer, head, peak = 218_103_808, 4096 * 131072, 989e12
  products = 2 * (4 * 34 * layer + 3 * head) * 8192 / (0.75 * peak)
  pair = 2 * 32 * 128  # Operations of a pair in a product.
  seen, every = 4096 * (4096 + 128), 2 * 4096**2
  forward = 2 * 34 * 2 * pair * seen / (0.5 * peak)
  backward = 34 * 7 * pair * every / (0.5 * peak)
  ends = 4096 * 4 + 2 * 32 * 128 + 2 * 8 * 128 + 3 * 14336
  rest = 4 * 34 * 8192 * ends * 4 / (0.885 * 4.8e12)
  found = mfu.seconds(preset("8b"), 4096, TOKAMAX)
  want = [products, forward, backward, rest]
  assert list(found.values()) == pytest.approx(want)
  attended = 4096 * (4096 - 64) / 2 + 4096 * 4097 / 2 + 4096 * 64
  work = 3 * (2 * (34 * layer + head) * 8192 + 34 * 2 * pair * attended)
  share = work / (sum(want) * peak)
  assert mfu.mfu(preset("8b"), 4096, TOKAMAX) == pytest.approx(share)


def test_wide_chunks_are_what_runs():
  assert (BEFORE.turn, BEFORE.chunk) == (0, CHUNK)
  assert (NOW.turn, NOW.chunk) == WIDE
  for length in (4096, 16384):
    before, now = (
      mfu.seconds(preset("8b"), length, kernel) for kernel in (BEFORE, NOW)
    )
    assert now["forward"] < before["forward"] / 2
    assert now["backward"] < 0.6 * before["backward"]
