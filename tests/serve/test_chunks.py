"""How much of a prompt a visit reads."""

import types

import pytest

from nemodiff_jax.serve.chunks import (
  SIZES,
  ChunkSizes,
  last_sizes,
  short,
  size,
)


def visit(read: int = 0, queries: int = 8):
  """One of so many prompt tokens, beside a pass of so many queries."""
  chunks = [types.SimpleNamespace(start=5, stop=5 + read)] if read else []
  return types.SimpleNamespace(chunks=chunks, bucket=queries, width=1)


def learned(seconds: float, pass_seconds: float = 1.0, read: int = 32):
  """Sizes that saw passes, and chunks of so many tokens."""
  sizes = ChunkSizes(0, 1)
  for _ in range(3):
    sizes.observe(visit(), 2, 2 * pass_seconds)
    sizes.observe(visit(read), 1, pass_seconds + seconds)
  return sizes


@pytest.mark.parametrize(
  "queries, passes_over", [(1, 16), (16, 16), (17, 32), (380, 384), (385, 512)]
)
def test_a_pass_over_a_prompt_has_one_of_few_sizes(queries, passes_over):
  assert size(queries) == passes_over


def test_the_last_chunk_has_room_for_masks():
  assert last_sizes(0) == list(SIZES)
  assert last_sizes(32) == [64, 128, 256, 384]
  assert ChunkSizes(32, 1).tokens(0) == 384 - 32


def test_a_short_prompt_fits_a_chunk_that_the_warm_up_knows():
  assert [short(n) for n in (0, 32, 256, 300, 383)] == [128, 128, 128, 84, 1]
  for masks in range(600):
    assert size(short(masks) + masks) in last_sizes(masks)


def test_nobody_who_watches_means_large_chunks():
  assert learned(9.0).tokens(0) == 384


@pytest.mark.parametrize(
  "seconds, tokens",
  [
    (0.9, 32),  # A cycle may pass; 64 tokens may take twice as long.
    (0.25, 128),  # A cycle, exactly.
    (0.26, 64),
    (0.51, 32),
    (0.12, 256),
    (0.06, 384),
    (9.0, 16),  # The smallest, whatever it takes.
  ],
)
def test_rows_that_are_watched_wait_for_a_cycle(seconds, tokens):
  assert learned(seconds).tokens(1) == tokens


@pytest.mark.parametrize(
  "running, waiting, tokens",
  [
    (1, 1, 32),  # A cycle.
    (15, 1, 32),
    (8, 8, 32),
    (8, 9, 64),  # 2.5 cycles.
    (4, 5, 128),
    (2, 3, 256),
    (1, 2, 384),  # 20 cycles.
    (4, 31, 384),
    (0, 31, 384),
  ],
)
def test_rows_wait_longer_where_more_wait_for_a_first_token(
  running, waiting, tokens
):
  assert learned(0.99).tokens(running, waiting) == tokens


def test_ten_rows_wait_two_cycles_where_eleven_wait_for_a_first_token():
  sizes = learned(0.5)
  assert [sizes.tokens(10, waiting) for waiting in (10, 11)] == [64, 128]


def test_a_size_that_was_slow_once_is_tried_again():
  sizes = learned(0.9)
  sizes.observe(visit(128), 1, 100.0)  # The first run of its program.
  for _ in range(9):
    sizes.observe(visit(32), 1, 1.0 + 0.2)
  assert sizes.tokens(1) == 128


def test_a_chunk_behind_many_keys_is_smaller_and_grows_again():
  """Times follow the prompt: its chunks take longer from one to the next."""
  sizes = learned(0.4, read=16)  # Fast at the beginning, so 32 is tried.
  assert sizes.tokens(1) == 32
  for seconds in (0.9, 1.6, 2.0, 2.2, 2.4):
    sizes.observe(visit(32), 1, 1.0 + seconds)
  assert sizes.tokens(1) == 16
  for _ in range(2):
    sizes.observe(visit(16), 1, 1.0 + 1.2)
  assert sizes.tokens(1) == 16
  for _ in range(9):  # Another prompt.
    sizes.observe(visit(16), 1, 1.0 + 0.4)
  assert sizes.tokens(1) == 32


def test_a_chunk_is_expected_to_take_what_the_last_ones_took():
  sizes = learned(0.03)
  for seconds in (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4):
    sizes.observe(visit(384), 1, 1.0 + seconds)
  assert sizes.tokens(1) < 384


def test_cycles_of_two_passes_hide_chunks_twice_as_long():
  sizes = ChunkSizes(0, 2)
  sizes.observe(visit(), 2, 2.0)
  sizes.observe(visit(32), 2, 2.0 + 1.9)
  assert sizes.tokens(1) == 32


def test_before_anything_was_timed_a_chunk_is_as_long_as_a_pass():
  assert ChunkSizes(0, 1).tokens(1) == 16
  wide = ChunkSizes(0, 2)
  wide.observe(visit(queries=64), 2, 0.0)
  assert wide.tokens(1) == 128
