"""How the keys of a pass are dealt out: counted, on any machine."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.range_attention import config, mosaic, mosaic_plan

HEADS, GROUP, KEYS, BLOCK = 8, 4, 32768, 64
# B, T and the chip of a call.
CALLS = (
  (8, 1, config.HOPPER),
  (5, 17, config.BLACKWELL),
  (9, 72, config.HOPPER),
  (2, 272, config.BLACKWELL),
)


def ragged(batch: int, queries: int, seed: int) -> np.ndarray:
  """k_end [B, T] of a batch: long rows, short ones and empty ones.

  Alike in a row, or one more for each query, or in any order.
  """
  rng = np.random.default_rng(seed)
  last = rng.integers(0, KEYS + 1, (batch, 1))
  last[rng.random((batch, 1)) < 0.5] = rng.integers(0, 300)
  k_end = np.clip(last - queries + 1 + np.arange(queries), 0, None)
  if seed % 3 == 2:
    k_end = rng.permuted(k_end + rng.integers(-200, 1, k_end.shape), axis=1)
    k_end = k_end.clip(0)
  return k_end if seed % 3 else np.broadcast_to(last, k_end.shape)


@functools.partial(jax.jit, static_argnums=1)
def _plan(k_end, sizes):
  shape = (*k_end.shape, sizes.heads * sizes.group, sizes.dim)
  _, ends = mosaic.pack(jnp.zeros(shape, jnp.bfloat16), k_end, sizes)
  return mosaic_plan.plan(ends, sizes, BLOCK)


def made(k_end, chip=config.HOPPER):
  """The sizes and the plan of a call, as arrays."""
  batch, queries = k_end.shape
  q_shape = (batch, queries, HEADS * GROUP, 128)
  sizes = mosaic.work(chip, q_shape, (batch, KEYS, HEADS, 128))
  plan = _plan(jnp.asarray(k_end, jnp.int32), sizes)
  return sizes, *map(np.asarray, (plan.items, plan.shares, plan.pieces))


def tiles(k_end, rows: int) -> list[tuple[int, int]]:
  """Tiles of keys that each tile of rows reads, and those without a mask."""
  found = []
  for row in k_end:
    ends = np.repeat(row, GROUP)
    parts = [ends[i : i + rows] for i in range(0, len(ends), rows)]
    found += [(math.ceil(x.max() / BLOCK), x.min() // BLOCK) for x in parts]
  return found


@pytest.mark.parametrize("seed", range(20))
def test_every_block_gets_equally_many_tiles_and_every_tile_a_block(seed):
  batch, queries, chip = CALLS[seed % len(CALLS)]
  k_end = ragged(batch, queries, seed)
  sizes, items, shares, pieces = made(k_end, chip)
  want = tiles(k_end, sizes.tile)
  seen = [[] for _ in want]
  counts = []
  for first, last in zip(shares, shares[1:], strict=False):
    mine = [(i, *items[i]) for i in range(first, last)]
    counts.append(sum(high - low for _, _, low, high, *_ in mine))
    for i, row, low, high, full, limit in mine:
      assert full == want[row][1] and math.ceil(limit / BLOCK) == want[row][0]
      seen[row] += [(tile, i) for tile in range(low, high)]
  assert max(counts) - min(counts) <= 1
  assert len(counts) == sizes.blocks
  for row, ((count, _), pairs) in enumerate(zip(want, seen, strict=True)):
    assert [tile for tile, _ in pairs] == list(range(count))
    # The merge reads the items of the row, all of them and no others.
    first, number = pieces[row]
    assert sorted({i for _, i in pairs}) == list(range(first, first + number))


@pytest.mark.parametrize("processors", [78, 132, 148])
@pytest.mark.parametrize("queries", [1, 32, 72, 272, 512])
def test_the_chip_is_full_in_one_turn(processors, queries):
  chip = dataclasses.replace(config.HOPPER, processors=processors)
  sizes = mosaic.work(chip, (1, queries, 32, 128), (1, 4096, 8, 128))
  assert processors - 8 < sizes.blocks * 8 <= processors


def test_a_long_row_among_short_ones_costs_what_its_keys_cost():
  k_end = np.array([[KEYS], *[[200]] * 7])
  _, items, shares, _ = made(k_end)
  total = 512 + 7 * 4
  costs = [
    (items[a:b, 2] - items[a:b, 1]).sum()
    for a, b in zip(shares, shares[1:], strict=False)
  ]
  assert max(costs) == math.ceil(total / 16)


def test_no_keys_at_all_make_no_work():
  _, items, _, pieces = made(np.zeros((8, 1), int))
  assert (items[:, 1] == items[:, 2]).all() and (pieces[:, 1] == 0).all()


def test_tiles_of_the_longest_cache_do_not_overflow():
  """2^31 keys, 132 blocks: no product of the two."""
  chip = dataclasses.replace(config.HOPPER, processors=132)
  keys = mosaic.MAX_KEYS
  sizes = mosaic.work(chip, (1, 1, 4, 128), (1, keys, 1, 128))
  ends = jnp.full((1, sizes.tiles * sizes.tile), keys, jnp.int32)
  plan = jax.jit(mosaic_plan.plan, static_argnums=(1, 2))(ends, sizes, BLOCK)
  lengths = np.asarray(plan.items[:, 2] - plan.items[:, 1])
  assert lengths.sum() == keys // BLOCK and np.ptp(lengths) <= 1
