"""What the engine gains, and what it costs, as ratios within one run.

    python -m benchmarks.engine [--parts=job,single,auto,prefix,gap,programs]

job       512 prompts of mixed lengths against fixed batches of 16 in file order,
          also those of another checkout (--peer)
single    one request against the compiled loop; host time per visit
auto      1 to 64 requests at once: ar, widths 8, 16, 32, and --block_length=auto
prefix    a system prompt of 2,000 tokens that 32 requests share
gap       a prompt of 4,000 tokens that arrives among 15 rows that decode
programs  compiled in a job of 2,000 prompts with mixed settings

Programs are compiled before anything is timed. Runs alternate; figures are
medians, with the least and the largest behind them.
"""

import contextlib
import functools
import json
import random
import statistics
import time

import jax
from absl import app, flags

from benchmarks.engine_peer import fixed
from benchmarks.engine_runs import (
  REPEATS,
  Peer,
  Requests,
  head,
  random_prompts,
  rates,
  ratio,
  ready,
  run,
  say,
  shape_135m,
  spread,
)
from nemodiff_jax import api
from nemodiff_jax.decode.config import DecodeConfig, RowSettings, decode_config
from nemodiff_jax.engines import open_engine
from nemodiff_jax.evaluate import tasks
from nemodiff_jax.prompts import encode_prompt
from nemodiff_jax.serve.engine import Engine

PARTS = "job", "single", "auto", "prefix", "gap", "programs"
_PARTS = flags.DEFINE_list("parts", list(PARTS), "What to measure.")
_PEER = flags.DEFINE_string(
  "peer", None, "Another checkout, whose fixed batches run beside in the job."
)
_PROMPTS = flags.DEFINE_integer("prompts", 512, "Prompts of the job.")


def job(model: api.Model) -> None:
  """Mixed lengths: nobody waits for the longest of a batch."""
  draw = random.Random(0)
  count = _PROMPTS.value
  prompts = random_prompts(model, [draw.randint(20, 400) for _ in range(count)])
  rows = [RowSettings(draw.randint(8, 400), ignore_eos=True) for _ in prompts]
  requests = list(zip(prompts, rows, strict=True))
  peers = ["fixed", "peer"] if _PEER.value else ["fixed"]
  of = {"fixed": "fixed batches", "peer": "those of --peer"}
  head(
    *("mode", *(f"{of[name]} tok/s" for name in peers), "engine tok/s"),
    *(f"engine / {of[name]}" for name in peers),
  )
  for mode in ("ar", "linear_spec"):
    config = decode_config(model.config, mode)
    engine = ready(
      open_engine(
        model, config, rows=16, max_length=800, settings=rows, queue=count
      )
    )
    loop = functools.partial(fixed, model, config, prompts, rows)
    ways = {"fixed": loop, "engine": functools.partial(run, engine, requests)}
    with contextlib.ExitStack() as stack:
      if _PEER.value:
        peer = Peer(_PEER.value, mode, requests)
        ways["peer"] = stack.enter_context(contextlib.closing(peer))
      found = rates(ways)
    cells = (spread(found[name], ".0f") for name in (*peers, "engine"))
    say(mode, *cells, *(ratio(found, "engine", name) for name in peers))


def single(models: dict[str, api.Model]) -> None:
  """One request: what the engine costs beside the compiled loop."""
  head("model", "mode", "engine / loop", "visits", "host ms per visit")
  for name, model in models.items():
    (prompt,) = random_prompts(model, [32])
    row = RowSettings(256 if name == "embedded" else 64, ignore_eos=True)
    for mode in ("ar", "linear_spec"):
      config = decode_config(model.config, mode)
      engine = ready(
        open_engine(model, config, rows=1, max_length=600, settings=[row])
      )
      loop = functools.partial(fixed, model, config, [prompt], [row])
      ways = {
        "loop": loop,
        "engine": functools.partial(run, engine, [(prompt, row)]),
      }
      before = engine.statistics.visits
      found = rates(ways)
      visits = (engine.statistics.visits - before) // (REPEATS.value + 1)
      slow, fast = (
        row.max_new_tokens / statistics.median(found[w])
        for w in ("engine", "loop")
      )
      host = 1000 * (slow - fast) / visits
      ours = ratio(found, "engine", "loop")
      say(name, mode, ours, visits, f"{host:.2f}")


def questions(model: api.Model, count: int) -> Requests:
  """Held-out questions of the embedded checkpoint."""
  task = tasks.embedded(count)
  row = RowSettings(200)
  asked = [question.prompt for question in task.questions]
  return [
    (list(encode_prompt(model.tokenizer, model.template, p)), row)
    for p in asked
  ]


def auto(model: api.Model) -> None:
  """The best width changes with the load; auto follows it."""
  widths = ("ar", "8", "16", "32", "auto")
  engines = {}
  for name in widths:
    config = decode_config(model.config, "ar")
    if name != "ar":
      block = name if name == "auto" else int(name)
      config = decode_config(model.config, "linear_spec", block_length=block)
    engines[name] = ready(
      open_engine(model, config, rows=64, max_length=400, settings=[_PLAIN])
    )
  head("at once", *(f"{w} tok/s" for w in widths), "auto / best")
  for at_once in (1, 2, 4, 8, 16, 32, 64):
    asked = questions(model, 192)
    ways = {
      name: functools.partial(run, engine, asked, at_once)
      for name, engine in engines.items()
    }
    found = rates(ways)
    best = max(widths[:-1], key=lambda w: statistics.median(found[w]))
    cells = (spread(found[w], ".0f") for w in widths)
    say(at_once, *cells, ratio(found, "auto", best))


def prefix(model: api.Model) -> None:
  """What is shared is read once."""
  shared, *own = random_prompts(model, [2000, *[20] * 32])
  row = RowSettings(8, ignore_eos=True)
  config = decode_config(model.config, "ar")
  engine = ready(
    open_engine(model, config, rows=32, max_length=2100, settings=[row])
  )
  head("later ones", "first s", "later s (median)", "later / first", "pages")
  alone = 32 * -(-2036 // 128)
  for together in (False, True) * REPEATS.value:
    first, later, most = _first_tokens(engine, shared, own, row, together)
    say(
      "at once" if together else "one by one",
      f"{first:.2f}",
      f"{statistics.median(later):.2f}",
      f"{statistics.median(later) / first:.2f}",
      f"{most}, {alone} without sharing",
    )


def _first_tokens(
  engine: Engine, shared, own, row, together: bool
) -> tuple[float, list[float], int]:
  """(Seconds to the first token: of the first, of the others; most pages)."""
  engine.cache.pages.flush()
  waiting, started, found, most = list(own), {}, [], 0

  def submit():
    prompt = [*shared, *waiting.pop(0)]
    started[engine.submit(prompt, row, stream=True)] = time.perf_counter()

  submit()
  while not engine.idle:
    for event in engine.step():
      begun = started.pop(event.generation, None)
      if begun is not None:
        found.append(time.perf_counter() - begun)
        while waiting and (together or not started):
          submit()
    most = max(most, engine.cache.pages.used)
  return found[0], found[1:], most


def gap(model: api.Model) -> None:
  """A long prompt does not stop those that decode."""
  *short, long = random_prompts(model, [*[32] * 15, 4000])
  head("mode", "median gap ms", "longest ms", "longest / median", "long TTFT s")
  for mode, block, tokens in (("ar", None, 150), ("linear_spec", 32, 60)):
    row = RowSettings(tokens, ignore_eos=True)
    config = decode_config(model.config, mode, block_length=block)
    engine = ready(
      open_engine(model, config, rows=16, max_length=4200, settings=[row])
    )
    _gaps(engine, short, long, row)  # What runs first is slow.
    for _ in range(REPEATS.value):
      say(mode, *_gaps(engine, short, long, row))


def _gaps(engine: Engine, short, long, row) -> tuple[str, ...]:
  engine.cache.pages.flush()
  for prompt in short:
    engine.submit(prompt, row, stream=True)
  last: dict = {}
  before, after, late, first = [], [], None, None
  while not engine.idle:
    events = engine.step()
    now = time.perf_counter()
    for event in events:
      if late is not None and event.generation is late[0]:
        first = first or now - late[1]
        continue
      if event.tokens and event.generation in last and first is None:
        gaps = before if late is None else after
        gaps.append(now - last[event.generation])
      if event.tokens:
        last[event.generation] = now
    if late is None and len(before) > 15 * 12:
      own = RowSettings(8, ignore_eos=True)
      late = engine.submit(long, own, stream=True), now
  usual, longest = statistics.median(before), max(after)
  return (
    f"{1000 * usual:.1f}",
    f"{1000 * longest:.1f}",
    f"{longest / usual:.2f}",
    f"{first or 0:.2f}",
  )


_PLAIN = RowSettings(200)


def programs(model: api.Model) -> None:
  """Few programs serve any mixture of settings."""
  draw = random.Random(0)
  prompts = random_prompts(model, [draw.randint(1, 700) for _ in range(2000)])
  rows = [
    RowSettings(
      draw.randint(1, 12),
      temperature=draw.choice([0, 0.7]),
      top_p=draw.choice([1.0, 0.9]),
      top_k=draw.choice([0, 5]),
      logprobs=draw.choice([None, None, 3]),
      seed=i,
    )
    for i in range(2000)
  ]
  requests = list(zip(prompts, rows, strict=True))
  head("width", "programs", "of these after the warm-up")
  ways: dict[str, DecodeConfig] = {
    "ar": decode_config(model.config, "ar"),
    "linear_spec": decode_config(model.config, "linear_spec"),
    "auto": decode_config(model.config),
  }
  for name, config in ways.items():
    engine = open_engine(
      model, config, rows=8, max_length=800, settings=rows, queue=2000
    )
    before = len(list(engine.warm_up()))
    run(engine, requests)
    say(name, engine.programs, engine.programs - before)


def main(_) -> None:
  device = jax.devices()[0]
  print(json.dumps({"device": device.device_kind, "jax": jax.__version__}))
  embedded = api.load(None)
  large = (
    shape_135m() if {"single", "prefix", "gap"} & {*_PARTS.value} else None
  )
  for part in _PARTS.value:
    if part not in PARTS:
      raise app.UsageError(f"parts should be of {PARTS}, got {part!r}.")
    print(f"\n{part}", flush=True)
    if part == "single" and large is not None:
      single({"embedded": embedded, "135M shape": large})
    elif part in ("prefix", "gap") and large is not None:
      {"prefix": prefix, "gap": gap}[part](large)
    else:
      {"job": job, "auto": auto, "programs": programs}[part](embedded)


if __name__ == "__main__":
  app.run(main)
