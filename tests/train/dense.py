"""The joint objective as a dense mask and plain loops, in float64."""

import numpy as np

from tests.twin import NumpyModel


def doubled_mask(rows, noisy, row: int, block: int, causal=False) -> np.ndarray:
  """[M + L, M + L]: who sees whom in one row, straight from the definition."""
  start = np.asarray(rows.start[row])
  place, begin = (np.asarray(x[row]) for x in (noisy.position, noisy.start))
  m, size = len(place), len(start)
  mask = np.zeros((m + size, m + size), bool)
  for i in range(m):
    first = place[i - i % block]
    for j in range(m):
      same = i // block == j // block
      mask[i, j] = same and (j <= i or not causal)
    for j in range(size):
      mask[i, m + j] = start[j] == begin[i] and j < first
  for i in range(size):
    for j in range(i + 1):
      mask[m + i, m + j] = start[i] == start[j]
  return mask


def logits(config, params, rows, noisy, row: int, block: int, **how):
  """[M, V] of the noisy half and [L, V] of the clean half of one row."""
  clean, start = (np.asarray(x[row]) for x in (rows.tokens, rows.start))
  place, begin = (np.asarray(x[row]) for x in (noisy.position, noisy.start))
  m = len(place)
  out = NumpyModel(config, params, *how.get("lora", ())).logits(
    np.concatenate([np.asarray(noisy.tokens[row]), clean]),
    np.concatenate([place - begin, np.arange(len(clean)) - start]),
    doubled_mask(rows, noisy, row, block, how.get("causal", False)),
    np.arange(m + len(clean)) < m if "lora" in how else None,
  )
  return out[:m], out[m:]


def cross_entropy(scores: np.ndarray, target: int) -> float:
  peak = scores.max()
  return float(peak + np.log(np.exp(scores - peak).sum()) - scores[target])


def joint(
  config, params, rows, noisy, block, weight=0.3, count="supervised", heavy=()
):
  """The loss of all rows, straight from the definition.

  Tokens in `heavy` count 2.5 times, above and below the line.
  """
  ar = diffusion = 0.0
  ar_count = masked = supervised = 0
  size = lambda token: 2.5 if int(token) in heavy else 1.0
  for row in range(len(rows.tokens)):
    at_noisy, at_clean = logits(config, params, rows, noisy, row, block)
    tokens, start = (np.asarray(x[row]) for x in (rows.tokens, rows.start))
    learned = np.asarray(rows.supervised[row])
    for i in range(1, len(tokens)):
      if learned[i] and start[i] != i:
        ar += size(tokens[i]) * cross_entropy(at_clean[i - 1], tokens[i])
        ar_count += size(tokens[i])
    for i, place in enumerate(np.asarray(noisy.position[row])):
      if not noisy.learned[row, i]:
        continue
      own = size(tokens[place])
      supervised += own
      if noisy.masked[row, i]:
        masked += own
        p = float(noisy.mask_prob[row, i])
        diffusion += own * cross_entropy(at_noisy[i], tokens[place]) / p
  if count == "joint":
    return (ar + weight * diffusion) / (masked + ar_count)
  return ar / ar_count + weight * diffusion / (
    masked if count == "masked" else supervised
  )
