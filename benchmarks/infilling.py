"""Does what follows a hole help to fill it? On the embedded checkpoint.

    python -m benchmarks.infilling [--questions=100] [--holes=3]

Answers that ar gave to held-out questions, and were right, get holes of some
tokens at places that a die chooses. Each is filled with the tokens that follow it
in its block, and without; behind the question, and as if there were none. Printed
is how many are filled with the very tokens that stood there.
"""

import argparse
import importlib.resources
import json
import random

import nemodiff_jax as nd
from nemodiff_jax import api
from nemodiff_jax.decode.config import RowSettings

SIZES = 1, 2, 4, 8, 12
EDGES = 3  # Tokens of the answer before the first hole and behind the last.


def right_answers(model, count):
  """(ids of a question, ids of ar's answer) where the answer is right."""
  assets = importlib.resources.files("nemodiff_jax") / "assets"
  lines = (assets / "held_out.jsonl").read_text().splitlines()[:count]
  asked = [json.loads(line) for line in lines]
  prompts = [api.prepare(model, q["messages"], RowSettings()) for q in asked]
  outputs = nd.generate(
    model, prompts, mode="ar", max_new_tokens=112, batch_size=16
  )
  return [
    (prompt, o.token_ids)
    for question, prompt, o in zip(asked, prompts, outputs, strict=True)
    if str(o.text).rstrip(".").endswith(f" {question['answer']}")
  ]


def cuts(answers, size, count, draw):
  """(what stands before, the hole, what follows) of some holes of a size."""
  found = []
  for prompt, ids in answers:
    for _ in range(count):
      if len(ids) < size + 2 * EDGES:
        continue
      at = draw.randrange(EDGES, len(ids) - size - EDGES + 1)
      found.append(
        ([*prompt, *ids[:at]], ids[at : at + size], ids[at + size :])
      )
  return found


def without_question(model, before):
  """The answer so far, behind the beginning of a text."""
  mark = model.tokenizer.id_of("<|assistant|>")
  return [before[0], *before[before.index(mark) :]]


def filled(model, holes, size, sees):
  """How many holes get the tokens that stood there."""
  outputs = nd.generate(
    model,
    [before for before, _, _ in holes],
    [{"following": rest if sees else ()} for _, _, rest in holes],
    mode="diffusion",
    max_new_tokens=size,
    batch_size=16,
  )
  pairs = zip(outputs, holes, strict=True)
  return sum(o.token_ids == hole for o, (_, hole, _) in pairs)


def main():
  """Prints a table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--questions", type=int, default=100)
  parser.add_argument("--holes", type=int, default=3)
  args = parser.parse_args()
  model = nd.load()
  print(
    "| hole, tokens | question | holes | right, with what follows | without |"
  )
  print("|---|---|---|---|---|")
  answers = right_answers(model, args.questions)
  for asked in (True, False):
    for size in SIZES:
      holes = cuts(answers, size, args.holes, random.Random(size))
      if not asked:
        holes = [(without_question(model, h), *rest) for h, *rest in holes]
      found = (filled(model, holes, size, sees) for sees in (True, False))
      shares = " | ".join(f"{100 * n / len(holes):.1f} %" for n in found)
      known = "yes" if asked else "no"
      print(f"| {size} | {known} | {len(holes)} | {shares} |", flush=True)


if __name__ == "__main__":
  main()
