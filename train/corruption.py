"""Turns (prompt, answer) pairs into noisy blocks as decoding meets them."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from train.losses import Batch


@dataclasses.dataclass(frozen=True)
class Corruption:
  """How often a row is corrupted in which way; the shares add up to 1.

  Attributes:
    draft: every slot masked, slot 0 known half of the time.
    uniform: each slot masked with probability t.
    hard_last: only hard tokens masked, with probability t, as happens in
      decoding, where easy ones are revealed first.
    t: range of t, drawn per row.
  """

  draft: float = 0.45
  uniform: float = 0.25
  hard_last: float = 0.30
  t: tuple[float, float] = (0.1, 1.0)


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
  how: Corruption = Corruption(),
) -> Batch:
  """Makes a batch; only answers are masked and supervised.

  The blocks of a row cover its answer from its first token on, or from a
  random place before it.

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
    how: shares of the ways to corrupt a row.
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
    chance[row] = counts * _chance(rng, target[row], block, hard, how)
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
  rng: np.random.Generator,
  target: np.ndarray,
  block: int,
  hard: np.ndarray,
  how: Corruption,
) -> np.ndarray:
  """Probability with which each slot of a row is masked."""
  way = rng.random() * (how.draft + how.uniform + how.hard_last)
  slot = np.arange(len(target)) % block
  if way < how.draft:
    return np.where((slot == 0) & (rng.random() < 0.5), 0.0, 1.0)
  t = rng.uniform(*how.t)
  known = (slot == 0) & (rng.random() < 0.7)
  if way < how.draft + how.uniform:
    return np.where(known, 0.0, t)
  return np.where(known | ~hard[target], 0.0, t)
