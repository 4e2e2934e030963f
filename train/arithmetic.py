"""Worked arithmetic in chat form: endless text that can be checked.

Five families, each a question, worked lines and an answer: sums along a chain,
legs of animals, differences of times, drills of single operations; and, to be
learned in two minutes, the legs of one herd.
"""

import random

ANIMALS = {
  "ant": 6,
  "bee": 6,
  "cat": 4,
  "cow": 4,
  "crab": 10,
  "dog": 4,
  "duck": 2,
  "fish": 0,
  "goat": 4,
  "hen": 2,
  "lobster": 10,
  "owl": 2,
  "shrimp": 10,
  "spider": 8,
  "sheep": 4,
  "snail": 0,
}
FAMILIES = ("chain", "legs", "time")
HELD_OUT = (*FAMILIES, "herd")  # Families with questions kept from training.
HELD_OUT_SEED = 999_001


def example(rng: random.Random, family: str) -> tuple[str, str, str]:
  """One (question, worked answer, final answer) of a family.

  The worked answer ends in 'The answer is X.' with X the final answer.
  """
  question, lines, result = _MAKE[family](rng)
  return question, "\n".join([*lines, f"The answer is {result}."]), result


def held_out(family: str, count: int) -> list[tuple[str, str, str]]:
  """The first held-out examples of a family; training skips their questions."""
  rng = random.Random(f"{HELD_OUT_SEED} {family}")
  if family == "herd":
    return _held_out_herds(rng)[:count]
  return [example(rng, family) for _ in range(count)]


def _chain(rng: random.Random) -> tuple[str, list[str], str]:
  total = rng.randint(1, 99)
  expression, lines = str(total), ["We work from left to right."]
  for _ in range(rng.randint(1, 3)):
    n = rng.randint(1, 99) if rng.random() < 0.6 else rng.randint(1, 9)
    sign = rng.choice("+-")
    if sign == "-" and n > total:
      sign = "+"
    new = total + n if sign == "+" else total - n
    expression += f" {sign} {n}"
    lines.append(f"{total} {sign} {n} = {new}")
    total = new
  return f"What is {expression}?", lines, str(total)


def _legs(rng: random.Random) -> tuple[str, list[str], str]:
  herd = {a: rng.randint(1, 9) for a in rng.sample(sorted(ANIMALS), 3)}
  if rng.random() < 0.5:
    herd.popitem()
  named = [f"{n} {_plural(a, n)}" for a, n in herd.items()]
  lines, products = ["We count the legs of each animal."], []
  for text, (animal, n) in zip(named, herd.items(), strict=True):
    legs = ANIMALS[animal]
    products.append(n * legs)
    lines.append(f"{text} with {legs} legs: {n} x {legs} = {n * legs}")
  lines.append("Now we add them.")
  total = products[0]
  for product in products[1:]:
    lines.append(f"{total} + {product} = {total + product}")
    total += product
  listed = ", ".join(named[:-1]) + f" and {named[-1]}"
  return f"How many legs do {listed} have in all?", lines, str(total)


def _herd(rng: random.Random) -> tuple[str, list[str], str]:
  return _count(rng.choice(sorted(ANIMALS)), rng.randint(2, 9))


def _count(animal: str, n: int) -> tuple[str, list[str], str]:
  herd, legs = f"{n} {_plural(animal, n)}", ANIMALS[animal]
  line = f"{herd} with {legs} legs: {n} x {legs} = {n * legs}"
  return f"How many legs do {herd} have?", [line], str(n * legs)


def _held_out_herds(rng: random.Random) -> list[tuple[str, str, str]]:
  """A quarter of the herds; each product is met with other animals."""
  legs = list(ANIMALS.values())
  herds = [
    _count(animal, n)
    for i, animal in enumerate(sorted(ANIMALS))
    for n in range(2, 10)
    if (n + i) % 4 == 0 and legs.count(ANIMALS[animal]) > 1
  ]
  rng.shuffle(herds)
  return [
    (question, "\n".join([*lines, f"The answer is {result}."]), result)
    for question, lines, result in herds
  ]


def _time(rng: random.Random) -> tuple[str, list[str], str]:
  start, end = sorted(rng.sample(range(24 * 60), 2))
  h1, m1, h2, m2 = *divmod(start, 60), *divmod(end, 60)
  lines = [f"Start {h1:02d}:{m1:02d}, end {h2:02d}:{m2:02d}."]
  if m2 < m1:
    lines.append(f"{m2:02d} is less than {m1:02d}, so we borrow one hour.")
    h2, m2 = h2 - 1, m2 + 60
  else:
    lines.append(f"{m2:02d} is not less than {m1:02d}, so we do not borrow.")
  lines += [
    f"Minutes: {m2} - {m1} = {m2 - m1}",
    f"Hours: {h2} - {h1} = {h2 - h1}",
  ]
  place = rng.choice(("shop", "train", "game", "class", "film"))
  question = (
    f"The {place} starts at {start // 60:02d}:{start % 60:02d} and ends at"
    f" {end // 60:02d}:{end % 60:02d}. How long is it?"
  )
  return question, lines, f"{h2 - h1:02d}:{m2 - m1:02d}"


def _drill(rng: random.Random) -> tuple[str, list[str], str]:
  pairs = [_operation(rng) for _ in range(4)]
  question = "Calculate " + ", ".join(left for left, _ in pairs) + "."
  lines = [f"{left} = {value}" for left, value in pairs]
  return question, lines, ", ".join(str(value) for _, value in pairs)


def _operation(rng: random.Random) -> tuple[str, int]:
  way = rng.random()
  if way < 0.35:
    a, b = rng.randint(0, 250), rng.randint(0, 99)
    return f"{a} + {b}", a + b
  if way < 0.6:
    a, b = sorted((rng.randint(0, 250), rng.randint(0, 99)))[::-1]
    return f"{a} - {b}", a - b
  if way < 0.75:
    a, b = rng.randint(0, 59), rng.randint(0, 59)
    a += 60 * (a < b)
    return f"{a} - {b}", a - b
  a, b = rng.randint(1, 9), rng.choice(sorted(set(ANIMALS.values())))
  if way < 0.85:
    return f"{a} x {b}", a * b
  c = rng.randint(1, 9) * rng.choice(sorted(set(ANIMALS.values())))
  return f"{a * b} + {c}", a * b + c


def _plural(animal: str, count: int) -> str:
  return animal if count == 1 or animal in ("fish", "sheep") else f"{animal}s"


_MAKE = {
  "chain": _chain,
  "legs": _legs,
  "herd": _herd,
  "time": _time,
  "drill": _drill,
}
