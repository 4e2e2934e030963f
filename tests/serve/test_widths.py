"""The choice of widths, in a world whose times and acceptance are known."""

import random

import pytest

from nemodiff_jax.serve.widths import Widths, cycles_of, passes_of

WIDTHS = (1, 8, 16, 32)


class World:
  """True times and acceptance, that the chooser sees through noise only."""

  def __init__(self, seed: int, bucket: int = 4):
    rng = self.rng = random.Random(seed)
    self.bucket = bucket
    share = rng.random()  # From a pass that costs the same to one per token.
    self.seconds = {w: 1 + share * (w - 1) * bucket / 16 for w in WIDTHS}
    self.base = rng.uniform(0.05, 0.97)
    self.fade = rng.uniform(0.95, 1)  # Later slots are right less often.
    self.wide = rng.uniform(0.97, 1)  # Drafts of wide blocks, too.
    self.rows = [self.row() for _ in range(bucket)]

  def row(self):
    return object(), min(self.base * self.rng.uniform(0.7, 1.3), 0.98)

  def right(self, p: float, width: int, slot: int) -> float:
    return p * self.fade**slot * self.wide ** (width / 8)

  def expected(self, width: int) -> float:
    """True tokens per second."""
    if width == 1:
      return self.bucket / self.seconds[1]
    tokens = 0.0
    for _, p in self.rows:
      chance = 1.0
      for slot in range(width):
        tokens += chance
        chance *= self.right(p, width, slot)
    return tokens / (2 * self.seconds[width])

  def accepted(self, p: float, width: int) -> int:
    count = 1
    while count < width and self.rng.random() < self.right(p, width, count - 1):
      count += 1
    return count

  def cycles(self, widths: Widths) -> tuple[int, int, bool]:
    """Cycles with the width that is chosen."""
    width, probe = widths.choose([r for r, _ in self.rows], self.bucket, None)
    noise = self.rng.lognormvariate(0, 0.1)
    if self.rng.random() < 0.1:
      noise *= 10  # The machine did something else.
    cycles = cycles_of(width, 8)
    passes = cycles * passes_of(width)
    seconds = self.seconds[width] * noise * passes
    widths.observe_time(self.bucket, width, seconds, passes)
    for row, p in self.rows:
      taken = [self.accepted(p, width) for _ in range(cycles)]
      widths.observe_acceptance(row, width, taken)
    for i in range(self.bucket):  # Rows end after some 40 cycles.
      if self.rng.random() < cycles / 40:
        widths.forget(self.rows[i][0])
        self.rows[i] = self.row()
    return width, passes, probe


def yielded(world: World, widths: Widths, cycles: int):
  """(true tokens per second that were to be expected, of the best width)."""
  time, tokens, most = 0.0, 0.0, dict.fromkeys(WIDTHS, 0.0)
  probing = 0.0
  for _ in range(cycles):
    rates = {w: world.expected(w) for w in WIDTHS}
    width, passes, probe = world.cycles(widths)
    seconds = world.seconds[width] * passes
    time, tokens = time + seconds, tokens + seconds * rates[width]
    probing += probe * seconds * (1 - rates[width] / max(rates.values()))
    for w in WIDTHS:
      most[w] += seconds * rates[w]
  return tokens / time, max(most.values()) / time, probing / time


@pytest.mark.parametrize("bucket, least", [(1, 0.97), (4, 0.98), (16, 0.98)])
def test_it_yields_what_the_best_fixed_width_does(bucket, least):
  """Where rows differ, times are noisy, and each width is some world's best."""
  kept, lost = [], []
  for seed in range(8):
    world, widths = World(seed, bucket), Widths(WIDTHS)
    for _ in range(100):
      world.cycles(widths)
    mine, best, probing = yielded(world, widths, 600)
    kept.append(mine / best)
    lost.append(probing)
  assert sum(kept) / len(kept) > least, kept
  assert sum(lost) / len(lost) < 0.01, lost


def settled(seconds, accepted, cycles=200, rows=("a",), bucket=1, widths=None):
  """Widths chosen, probes left out, by fixed times and acceptance."""
  widths = widths or Widths(WIDTHS)
  chosen = []
  for _ in range(cycles):
    width, probe = widths.choose(rows, bucket)
    widths.observe_time(bucket, width, seconds[width], passes_of(width))
    for row in rows:
      widths.observe_acceptance(row, width, [accepted(row, width)])
    if not probe:
      chosen.append(width)
  return chosen, widths


FLAT = {1: 1.0, 8: 2.0, 16: 2.0, 32: 2.0}  # Of a cycle: two passes.
LINEAR = {1: 1.0, 8: 16.0, 16: 32.0, 32: 64.0}


def test_the_widest_is_best_where_all_is_right_and_width_is_free():
  chosen, _ = settled(FLAT, lambda _, width: width)
  assert set(chosen[-50:]) == {32}


def test_ar_is_best_where_nothing_is_right_or_width_costs_most():
  for seconds, accepted in (
    (FLAT, lambda _, width: 1),
    (LINEAR, lambda _, width: width),
  ):
    chosen, _ = settled(seconds, accepted)
    assert set(chosen[-50:]) == {1}


def test_a_tie_of_ar_and_a_draft_is_at_two_passes_a_cycle():
  """Two tokens in a cycle of two passes yield what two ar passes do."""
  for accepted, best in ((1.7, {1}), (2.3, {8})):
    rng = random.Random(0)

    def count(_, width, least=int(accepted), rest=accepted % 1, rng=rng):
      return least + (rng.random() < rest)

    seconds = FLAT | {16: 3.0, 32: 4.0}
    chosen, _ = settled(seconds, count, 600)
    assert set(chosen[-50:]) == best


def test_acceptance_of_a_row_is_its_own():
  """One row of two is never right: it alone decodes best by ar passes."""
  rows, right = ("good", "bad"), {"good": 8, "bad": 1}
  _, widths = settled(
    FLAT, lambda row, width: min(right[row], width), rows=rows
  )
  for row, best in (("good", {8, 16, 32}), ("bad", {1})):
    for _ in range(20):
      width, probe = widths.choose([row], 1)
      assert probe or width in best, row
  widths.forget("bad")
  assert widths.choose(["bad"], 1)[0] != 1


def test_a_row_is_never_believed_to_be_always_right():
  _, widths = settled({w: 1.0 for w in WIDTHS}, lambda _, width: width, 3000)
  rate = widths._rate(["a"], 1, 32) * widths._cycle_time(1, 32)
  most = (1 - 0.99**32) / (1 - 0.99)
  assert 0.9 * most < rate <= most + 1e-9


def test_it_follows_when_the_world_changes():
  chosen, widths = settled(FLAT, lambda _, width: width)
  assert chosen[-1] == 32
  chosen, _ = settled(LINEAR, lambda _, width: width, 300, widths=widths)
  assert set(chosen[-30:]) == {1}


def test_a_width_that_was_slow_is_tried_again():
  widths = Widths((1, 32))
  slow = {1: 1.0, 32: 29.0}
  chosen, _ = settled(slow, lambda _, width: width, widths=widths)
  assert chosen[-1] == 1
  chosen, _ = settled(FLAT, lambda _, width: width, 6000, widths=widths)
  assert set(chosen[-30:]) == {32}


def test_wide_drafts_that_are_seldom_right_say_nothing_of_narrow_ones():
  right = {1: 1, 8: 8, 16: 2, 32: 2}
  chosen, _ = settled(FLAT, lambda _, width: right[width], 1000)
  assert set(chosen[-50:]) == {8}


def test_pauses_of_the_machine_do_not_count():
  rng = random.Random(0)
  widths, chosen = Widths(WIDTHS), []
  for _ in range(400):
    width, probe = widths.choose(["a"], 1)
    noise = 50 if rng.random() < 0.2 else 1
    widths.observe_time(1, width, FLAT[width] * noise, passes_of(width))
    widths.observe_acceptance("a", width, [width])
    chosen += [] if probe else [width]
  assert chosen[-200:].count(32) > 190


def test_only_widths_that_are_compiled_are_chosen():
  widths = Widths(WIDTHS)
  for _ in range(40):
    width, probe = widths.choose(["a"], 1, ready={16})
    assert (width, probe) == (16, False)
    widths.observe_time(1, 16, 1.0)
  seen = set()
  for _ in range(40):
    width, _ = widths.choose(["a"], 1, ready={1, 16})
    seen.add(width)
    widths.observe_time(1, width, 1.0)
  assert seen == {1, 16}


def test_each_width_is_timed_at_each_batch_size():
  """What passes of 4 rows cost says nothing of those of 8."""
  right = lambda _, width: width
  chosen, widths = settled(FLAT, right, bucket=4)
  assert chosen[-1] == 32
  chosen, _ = settled(LINEAR, right, bucket=8, widths=widths)
  assert set(chosen[-50:]) == {1}
  chosen, _ = settled(FLAT, right, bucket=4, widths=widths)
  assert set(chosen[-50:]) == {32}


def test_acceptance_is_told_by_slot():
  """Of drafts 0 and 1 always right, 2 never: as counted, near enough."""
  _, widths = settled(FLAT, lambda _, width: min(width, 3), 2000)
  told = widths.acceptance(8)
  assert len(told) == 7
  assert min(told[:2]) > 0.95 and told[2] < 0.1


@pytest.mark.parametrize(
  "right, wide, narrow, best",
  [(32, 1, 8, 1), (32, 16, 8, 32), (1, 1, 2, 32), (1, 1, 8, 1)],
)
def test_what_a_width_yields_counts_not_what_it_promises(
  right, wide, narrow, best
):
  """Answers that end inside their first cycle; rows that wait for others."""
  chosen, widths = [], Widths((1, 32))
  for _ in range(200):
    width, probe = widths.choose(["a"], 1)
    cycles = cycles_of(width, 8)
    passes = cycles * passes_of(width)
    widths.observe_time(1, width, float(passes), passes)
    accepted = [right if width > 1 else 1] * cycles
    widths.observe_acceptance("a", width, accepted)
    widths.observe_yield(width, cycles, wide if width > 1 else narrow)
    chosen += [] if probe else [width]
  assert set(chosen[-50:]) == {best}
