"""How many greedy texts change when cached pages are reused.

    python -m benchmarks.prefix_rounding [--questions=200]

A prompt that finds its first pages in the prefix cache is read in other chunks
than one that is read whole. In float32 that changes no token. In bfloat16 sums
are rounded otherwise, so two ids that are nearly as likely may change places.

Each question follows the same examples, questions of the embedded checkpoint
with its replies, some pages long. It is asked twice: under a salt of its own,
which shares no page with any other, and under the same salt as all others.
"""

import statistics

from absl import app, flags

from benchmarks.engine_runs import head, say
from nemodiff_jax import api
from nemodiff_jax.decode.config import RowSettings, decode_config
from nemodiff_jax.engines import open_engine
from nemodiff_jax.evaluate import tasks
from nemodiff_jax.prompts import encode_prompt
from nemodiff_jax.serve.generation import Generation

_QUESTIONS = flags.DEFINE_integer("questions", 200, "Questions asked.")
EXAMPLES = 8  # Before each question.


def examples(model: api.Model, prompts: list[list[int]]) -> list[int]:
  """Ids of questions and the model's replies, one behind the other."""
  replies = api.generate(model, prompts, mode="ar", max_new_tokens=120)
  pairs = zip(prompts, replies, strict=True)
  return [i for p, reply in pairs for i in [*p, *reply.token_ids]]


def main(_) -> None:
  questions = tasks.embedded(_QUESTIONS.value + EXAMPLES).questions
  head("dtype", "mode", "tokens reused (median)", "texts", "changed by reuse")
  for dtype in ("float32", "bfloat16"):
    model = api.load(None, dtype=dtype)
    asked = [
      list(encode_prompt(model.tokenizer, model.template, question.prompt))
      for question in questions
    ]
    shared = examples(model, asked[:EXAMPLES])
    prompts = [[*shared, *own] for own in asked[EXAMPLES:]]
    for mode in ("ar", "linear_spec"):
      apart, reusing = (ask(model, mode, prompts, salts) for salts in (1, 0))
      changed = sum(
        a.output.token_ids != b.output.token_ids
        for a, b in zip(apart, reusing, strict=True)
      )
      reused = statistics.median(made.request.reused for made in reusing)
      say(dtype, mode, f"{reused:.0f}", len(prompts), changed)


def ask(model: api.Model, mode: str, prompts, salts: int) -> list[Generation]:
  """Greedy replies; each prompt has a salt of its own if `salts`."""
  row = RowSettings(120)
  config = decode_config(model.config, mode)
  longest = max(map(len, prompts)) + row.max_new_tokens
  engine = open_engine(
    model, config, rows=8, max_length=longest, settings=[row], queue=10_000
  )
  made = [
    engine.submit(prompt, row, salt=str(i * salts))
    for i, prompt in enumerate(prompts)
  ]
  while not engine.idle:
    engine.step()
  return made


if __name__ == "__main__":
  app.run(main)
