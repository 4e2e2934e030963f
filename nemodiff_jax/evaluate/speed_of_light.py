"""The fewest passes that a perfect order of reveals would need.

The target of a block is what serial denoising gives: one slot a pass, the most
confident. The oracle knows the target. In each pass it reveals, of the slots
whose likeliest token is the target's, the largest set of most confident ones
from which the target can still be reached; whether it can is tried by revealing
greedily from there. It is the oracle of NVIDIA's technical report (section 4),
by full forward passes: for models and texts of a small scale.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from nemodiff_jax.api import Model
from nemodiff_jax.errors import UserError
from nemodiff_jax.evaluate.forward import Text, read

BUDGET = 5000  # Forward passes that one block may cost to search.


@dataclasses.dataclass(frozen=True)
class Found:
  """What the oracle needed for one text.

  Attributes:
    token_ids: the target: what serial denoising decodes.
    serial: denoising passes of serial denoising.
    oracle: denoising passes of the oracle.
    blocks: each has one more pass, which commits it.
  """

  token_ids: list[int]
  serial: int
  oracle: int
  blocks: int


@dataclasses.dataclass
class _Block:
  """The passes over one block; slots at or behind `room` do not count."""

  model: Model
  prefix: Sequence[int]
  size: int
  room: int
  stops: frozenset[int]
  forwards: int = 0

  def open(self, canvas: Sequence[int]) -> list[int]:
    """Masked slots before the first stop id."""
    stop = next((i for i, t in enumerate(canvas) if t in self.stops), self.size)
    mask = self.model.config.mask_id
    return [i for i in range(min(self.room, stop)) if canvas[i] == mask]

  def proposals(
    self, canvas: Sequence[int], slots: Sequence[int]
  ) -> tuple[np.ndarray, np.ndarray]:
    """(likeliest token, confidence) of some slots: one forward pass."""
    self.forwards += 1
    start = len(self.prefix)
    at = [start + i for i in slots]
    text = Text([*self.prefix, *canvas], start, at, [0] * len(at))
    (found,) = read(self.model, [text], 1)
    return found.token, found.confidence

  def serial(self, canvas: list[int]) -> tuple[list[int], int]:
    """The target, and the passes that one slot a pass takes."""
    passes, mask = 0, self.model.config.mask_id
    while self.open(canvas):
      slots = [i for i in range(min(self.room, self.size)) if canvas[i] == mask]
      token, sure = self.proposals(canvas, slots)
      best = int(sure.argmax())
      canvas = replaced(canvas, {slots[best]: int(token[best])})
      passes += 1
    return canvas, passes

  def matched(self, canvas: list[int], target: list[int]) -> list[int]:
    """Open slots whose likeliest token is the target's, surest first."""
    slots = self.open(target_view(canvas, target, self.stops))
    if not slots:
      return []
    token, sure = self.proposals(canvas, slots)
    right = [i for i in range(len(slots)) if token[i] == target[slots[i]]]
    return [slots[i] for i in sorted(right, key=lambda i: -sure[i])]

  def reaches(self, canvas: list[int], target: list[int]) -> bool:
    """Whether revealing all that matches, again and again, ends in it."""
    while self.open(target_view(canvas, target, self.stops)):
      slots = self.matched(canvas, target)
      if not slots or self.forwards > BUDGET:
        return False
      canvas = replaced(canvas, {i: target[i] for i in slots})
    return True

  def oracle(self, canvas: list[int], target: list[int]) -> int:
    """Passes of the oracle."""
    passes = 0
    while left := self.open(target_view(canvas, target, self.stops)):
      slots = self.matched(canvas, target)
      passes += 1
      if not slots:  # A dead end: the surest slot is given.
        slots = left[:1]
      count = self._largest(canvas, target, slots)
      canvas = replaced(canvas, {i: target[i] for i in slots[:count]})
    return passes

  def _largest(self, canvas, target, slots: list[int]) -> int:
    """How many of the surest can be revealed; 1 at least."""
    reached = lambda n: self.reaches(
      replaced(canvas, {i: target[i] for i in slots[:n]}), target
    )
    if reached(len(slots)):
      return len(slots)
    low, high = 1, len(slots)  # low is taken anyway, high does not do.
    while high - low > 1:
      middle = (low + high) // 2
      low, high = (middle, high) if reached(middle) else (low, middle)
    return low


def speed_of_light(
  model: Model,
  prompt: Sequence[int],
  block_length: int,
  max_new_tokens: int,
) -> Found:
  """Decodes a prompt serially, and searches for the oracle's passes.

  Raises:
    UserError: the checkpoint has no mask id.
  """
  mask = model.config.mask_id
  if mask is None:
    raise UserError("speed_of_light needs a mask id; this checkpoint has none.")
  stops = frozenset(model.config.eos_ids)
  out: list[int] = []
  serial = oracle = blocks = 0
  while True:
    prefix = [*prompt, *out]
    n = len(prefix)
    (seed,) = read(model, [Text(prefix, n, [n - 1], [0])], 1)
    room = max_new_tokens - len(out)
    block = _Block(model, prefix, block_length, room, stops)
    first = [int(seed.token[0])] + [mask] * (block_length - 1)
    target, passes = block.serial(first)
    serial += passes
    oracle += block.oracle(first, target)
    kept = target[:room]
    end = next((i for i, t in enumerate(kept) if t in stops), None)
    out += kept if end is None else kept[: end + 1]
    if end is not None or len(out) >= max_new_tokens:
      return Found(out, serial, oracle, blocks)
    blocks += 1


def replaced(canvas: list[int], tokens: dict[int, int]) -> list[int]:
  """The canvas with some slots filled."""
  return [tokens.get(i, t) for i, t in enumerate(canvas)]


def target_view(
  canvas: list[int], target: list[int], stops: frozenset[int]
) -> list[int]:
  """The canvas, cut where the target ends: slots behind it do not count."""
  end = next((i for i, t in enumerate(target) if t in stops), None)
  if end is None:
    return canvas
  # The stop id itself is to be revealed; what is behind it is not.
  return [*canvas[: end + 1], *[target[end]] * (len(canvas) - end - 1)]


def beside(
  found: Sequence[Found], block_length: int, measured: dict[str, float]
) -> dict[str, Any]:
  """A row: tokens per forward of the oracle, and of settings as measured."""
  tokens = sum(len(f.token_ids) for f in found)
  commits = sum(f.blocks for f in found)
  per = lambda passes: tokens / max(1, passes)
  return {
    "block_length": block_length,
    "questions": len(found),
    "oracle_per_denoising_pass": per(sum(f.oracle for f in found)),
    "oracle": per(sum(f.oracle for f in found) + commits),
    "serial": per(sum(f.serial for f in found) + commits),
    "measured": measured,
  }


def table(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
  """The rows as cells of text, the head first."""
  cells = [["decoding", "questions", "tokens/forward"]]
  for row in rows:
    c, n = row["block_length"], str(row["questions"])
    cells += [[name, n, f"{x:.2f}"] for name, x in row["measured"].items()]
    cells.append([f"serial denoising C={c}", n, f"{row['serial']:.2f}"])
    cells.append([f"oracle C={c}", n, f"{row['oracle']:.2f}"])
    cells.append(
      [
        f"oracle C={c}, commits not counted",
        n,
        f"{row['oracle_per_denoising_pass']:.2f}",
      ]
    )
  return cells
