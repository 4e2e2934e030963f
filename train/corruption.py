"""Turns (prompt, answer) pairs into noisy blocks as decoding meets them."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from train.losses import Batch

# Shares of the ways a row is corrupted.
DRAFT, UNIFORM, HARD_LAST = 0.45, 0.25, 0.30


def corrupt(
  rng: np.random.Generator,
  pairs: Sequence[tuple[list[int], list[int]]],
  *,
  length: int,
  noisy: int,
  block: int,
  mask_id: int,
  eos_id: int,
  hard: np.ndarray,
  hard_weight: float = 1.0,
) -> Batch:
  """Makes a batch; only answers are masked and supervised.

  The blocks of a row cover its answer from its first token on, or from a
  random place before it. A row is corrupted in one of three ways: as a draft
  (every slot masked, slot 0 known half of the time), uniformly (each slot with
  probability t), or hard-last: only hard tokens are masked, as happens in
  decoding, where easy ones are revealed first.

  Args:
    rng: source of everything random.
    pairs: prompt and answer ids; answers end with EOS.
    length: L; prompt + answer are cut to it.
    noisy: M, a multiple of block.
    block: C.
    mask_id: of the open slots.
    eos_id: what follows an answer, to the end of its last block.
    hard: [V] which tokens are hard.
    hard_weight: loss weight of hard tokens.
  """
  rows, blocks = len(pairs), noisy // block
  clean = np.full((rows, length), eos_id, np.int32)
  ar_weight = np.zeros((rows, length), np.float32)
  starts = np.zeros((rows, blocks), np.int32)
  target = np.full((rows, noisy), eos_id, np.int32)
  chance = np.zeros((rows, noisy), np.float32)
  for row, (prompt, answer) in enumerate(pairs):
    ids = np.array(prompt + answer, np.int32)[:length]
    clean[row, : len(ids)] = ids
    ar_weight[row, len(prompt) : len(ids)] = 1.0
    shift = rng.integers(0, block) if rng.random() < 0.6 else 0
    first = max(len(prompt) - int(shift), 0)
    starts[row] = first + np.arange(blocks) * block
    place = first + np.arange(noisy)
    inside = place < len(ids)
    target[row, inside] = ids[place[inside]]
    last = (len(ids) - 1 - first) // block
    counts = (place >= len(prompt)) & (np.arange(noisy) // block <= last)
    chance[row] = counts * _chance(rng, target[row], block, hard)
  masked = rng.random(chance.shape) < chance
  scale = np.where(hard[target], hard_weight, 1.0).astype(np.float32)
  ar_weight *= np.where(hard[clean], hard_weight, 1.0)
  return Batch(
    clean=jnp.asarray(clean),
    ar_weight=jnp.asarray(ar_weight),
    noisy=jnp.asarray(np.where(masked, mask_id, target).astype(np.int32)),
    starts=jnp.asarray(starts),
    target=jnp.asarray(target),
    weight=jnp.asarray(masked * scale / np.maximum(chance, 1e-3), jnp.float32),
    supervised=jnp.asarray((chance > 0).astype(np.float32)),
  )


def _chance(
  rng: np.random.Generator, target: np.ndarray, block: int, hard: np.ndarray
) -> np.ndarray:
  """Probability with which each slot of a row is masked."""
  way = rng.random()
  slot = np.arange(len(target)) % block
  if way < DRAFT:
    return np.where((slot == 0) & (rng.random() < 0.5), 0.0, 1.0)
  t = rng.uniform(0.1, 1.0)
  known = (slot == 0) & (rng.random() < 0.7)
  if way < DRAFT + UNIFORM:
    return np.where(known, 0.0, t)
  return np.where(known | ~hard[target], 0.0, t)
