"""The engine: each request gets what it would get alone."""

import dataclasses
import random

import jax.numpy as jnp
import numpy as np
import pytest

import nemodiff_jax as nd
from nemodiff_jax.decode.config import RowSettings, decode_config
from nemodiff_jax.decode.generate import decode_ids
from nemodiff_jax.decode.modes import MODES
from nemodiff_jax.decode.state import Decoder
from nemodiff_jax.errors import UserError
from nemodiff_jax.nn.cache import KVCache
from nemodiff_jax.serve import chunks, ready
from nemodiff_jax.serve import engine as engines
from nemodiff_jax.serve.cache import new_cache
from nemodiff_jax.serve.contract import Adjustments
from nemodiff_jax.serve.engine import Engine
from nemodiff_jax.text.tokenizer import load_tokenizer
from tests import helpers, twin

BLOCK = 8
WIDTHS = 1, 4, BLOCK
PAGES = 7  # Few, and everywhere as many: tests share programs.
SIZES = 1, 3, 20, 129, 128, 300
LIMITS = 1, 5, 20, 33
FEWER = helpers.fewer(MODES)
LARGEST = [9] * max(SIZES), RowSettings(max(LIMITS), 0.7, top_p=0.9, logprobs=2)
BATCH = 13  # And the largest row beside: all that run alone share programs.


@pytest.fixture(autouse=True, scope="module")
def few_sizes():
  """Prompts are read in chunks of two sizes, so few programs do.

  Whether another batch size pays, no clock says: by itself none does.
  """
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(chunks, "SIZES", (32, 128))
    patch.setattr(ready, "pays", lambda *_: False)
    yield


class Chosen:
  """Widths that a die chooses, whatever the times: every change happens."""

  def __init__(self, draw, widths):
    self._draw, self.widths = draw, widths

  def choose(self, rows, bucket, ready=None):
    usable = [w for w in self.widths if ready is None or w in ready]
    return self._draw.choice(usable), False

  def observe_time(self, *_):
    pass

  def observe_acceptance(self, *_):
    pass

  def observe_yield(self, *_):
    pass

  def forget(self, row):
    pass


def make_engine(tiny, mode, pages=PAGES, widths=None, tokenizer=None):
  config = decode_config(tiny.config, mode, block_length=BLOCK)
  if widths is not None:
    config = dataclasses.replace(config, widths=widths.widths)
  decoder = Decoder(tiny.module, MODES[mode], config.slots, None, 2)
  return config, Engine(
    decoder, tiny.weights(True), config, new_cache(tiny.module, pages),
    rows=4, max_length=512, widths=widths, tokenizer=tokenizer,
  )  # fmt: skip


def mixed(draw, seed):
  """Settings that differ in everything that shares a pass."""
  return RowSettings(
    draw.choice(LIMITS),
    temperature=draw.choice([0, 0, 0.7]),
    top_p=draw.choice([1.0, 0.9]),
    seed=seed,
    logprobs=draw.choice([None, None, 2]),
  )


def play(engine, draw, requests, between=lambda engine: None, first=4):
  """Submits at random times, and steps until all have ended.

  A smaller batch is compiled where few come `first`.
  """
  waiting, made, count = list(requests), [], first
  while waiting or not engine.idle:
    for _ in range(min(len(waiting), count)):
      made.append(engine.submit(*waiting.pop(0)))
    count = draw.randint(0, 3)
    between(engine)
    engine.step()
  return made


def alone(tiny, config, requests, **more):
  """What they would get in the compiled loop, where rows mind no other."""
  prompts, rows = zip(*requests, LARGEST, strict=True)
  weights = tiny.weights(True)
  return decode_ids(
    tiny.module, weights, config, prompts, rows, batch=BATCH, **more
  )[:-1]


SAME = "token_ids", "finish_reason", "nfe", "accepted"


def compare(made, wanted, fields=SAME):
  for request, want in zip(made, wanted, strict=True):
    got = request.output.result()
    for name in fields:
      assert getattr(got, name) == getattr(want, name), name
    if want.logprobs is not None:
      np.testing.assert_allclose(
        got.logprobs.token, want.logprobs.token, atol=1e-4
      )
      assert got.logprobs.top_ids == want.logprobs.top_ids


def spoil(engine):
  """NaN in every page that no row holds, whatever it held before.

  What NaN was there from the last call has to be there still.
  """
  pool, cache = engine.cache.pages, engine.cache
  pool.flush()
  free = np.array(pool._free, np.int32)
  was = [p for p in free if p in getattr(engine, "spoilt", ())]
  for keys in (*cache.arrays.k, *cache.arrays.v):
    assert np.isnan(np.asarray(keys)[was]).all()
  put = lambda x: x.at[free].set(jnp.nan)
  cache.arrays = KVCache(
    tuple(map(put, cache.arrays.k)), tuple(map(put, cache.arrays.v))
  )
  engine.spoilt = set(free.tolist())


@pytest.mark.parametrize("mode", FEWER)
def test_requests_get_what_they_would_get_alone(tiny, mode, monkeypatch):
  """Rows come and go at random, share pages, and are preempted.

  Where a single one comes first, or more sizes pay, batches change theirs.
  """
  monkeypatch.setattr(ready, "pays", lambda *_: mode == "ar")
  draw = random.Random(3)
  config, engine = make_engine(tiny, mode)
  prompts = helpers.prompts_of(
    tiny.config, [draw.choice(SIZES) for _ in range(12)]
  )
  requests = [(p, mixed(draw, seed)) for seed, p in enumerate(prompts)]
  first = 1 if mode in ("ar", "linear_spec") else 4
  made = play(engine, draw, requests, first=first)
  compare(made, alone(tiny, config, requests))
  assert engine.statistics.requests == 12


@pytest.mark.parametrize("mode", FEWER)
def test_nothing_is_read_from_pages_that_nobody_holds(tiny, mode):
  draw = random.Random(5)
  config, engine = make_engine(tiny, mode)
  prompts = helpers.prompts_of(
    tiny.config, [draw.choice(SIZES) for _ in range(6)], seed=1
  )
  requests = [(p, mixed(draw, seed)) for seed, p in enumerate(prompts)]
  made = play(engine, draw, requests, spoil)
  compare(made, alone(tiny, config, requests))


def test_widths_change_no_token(tiny):
  """Any width in any cycle, rows with draft thresholds and preempted ones."""
  draw = random.Random(7)
  widths = Chosen(draw, WIDTHS)
  _, engine = make_engine(tiny, "linear_spec", 5, widths)
  prompts = helpers.prompts_of(
    tiny.config, [draw.choice([3, 60, 80]) for _ in range(8)], seed=2
  )
  rows = [  # More pages than there are, for two of the long ones.
    RowSettings(
      draw.choice([5, 260, 280]),
      draw.choice([0, 0.7]),
      seed=seed,
      ignore_eos=True,
    )
    for seed in range(8)
  ]
  drafts = [draw.choice([None, None, 0.5]) for _ in rows]
  made = play(engine, draw, [
    (p, dataclasses.replace(r, draft_threshold=d))
    for p, r, d in zip(prompts, rows, drafts, strict=True)
  ])  # fmt: skip
  ar = decode_config(tiny.config, "ar")
  wanted = decode_ids(tiny.module, tiny.weights(True), ar, prompts, rows)
  compare(made, wanted, ("token_ids", "finish_reason"))
  assert engine.scheduler.preemptions > 0


@pytest.mark.parametrize("mode", FEWER)
def test_ends_that_the_host_decides_disturb_nobody(tiny, folder, mode):
  """Stop texts, and cancellations at any time."""
  draw = random.Random(11)
  tokenizer = load_tokenizer(folder)
  config, engine = make_engine(tiny, mode, tokenizer=tokenizer)
  prompts = helpers.prompts_of(
    tiny.config, [draw.choice(SIZES) for _ in range(12)], seed=3
  )
  rows = [RowSettings(33, temperature=0.7, seed=seed) for seed in range(12)]
  whole = alone(tiny, config, zip(prompts, rows, strict=True))
  for seed in range(1, 12, 3):  # Its own word: it comes in the middle.
    ids = whole[seed].token_ids
    stop = tokenizer.decode(ids[len(ids) // 2 :][:1])
    rows[seed] = dataclasses.replace(rows[seed], stop=[stop])
  requests, cancelled = list(zip(prompts, rows, strict=True)), []

  def leave(engine):
    for made in list(engine._generations.values()):
      if made.settings.seed % 3 == 2 and draw.random() < 0.15:
        assert engine.cancel(made) and not engine.cancel(made)
        cancelled.append(made)

  made = play(engine, draw, requests, leave)
  assert cancelled
  wanted = alone(tiny, config, requests, tokenizer=tokenizer)
  for got, want in zip(made, wanted, strict=True):
    if got in cancelled:
      count = len(got.output.token_ids)
      assert got.output.token_ids == want.token_ids[:count]
    else:
      compare([got], [want])
      if got.settings.stop:
        assert want.finish_reason == "stop"
        assert got.output.text == want.text


TWINS = {
  "ar": twin.ar,
  "diffusion": lambda *a: twin.diffusion(*a, BLOCK, 0.9, None),
  "linear_spec": lambda *a: twin.linear_spec(*a, BLOCK, 0.0, True),
  "quadratic_spec": lambda *a: twin.quadratic_spec(*a, BLOCK),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [8, pytest.param(56, marks=pytest.mark.slow)])
def test_requests_match_the_twin(tiny, mode, count):
  """Our own loop shares step and pages with the engine; the twin nothing."""
  scale = helpers.LORA_ALPHA / helpers.LORA_RANK
  model = twin.NumpyModel(tiny.config, tiny.params, tiny.lora, scale)
  draw = random.Random(13)
  _, engine = make_engine(tiny, mode)
  sizes = [draw.choice([1, 7, 40, 127, 130]) for _ in range(count)]
  prompts = helpers.prompts_of(tiny.config, sizes, seed=4)
  requests = [(p, RowSettings(draw.choice(LIMITS))) for p in prompts]
  made = play(engine, draw, requests)
  for (prompt, row), got in zip(requests, made, strict=True):
    want = TWINS[mode](model, prompt, row.max_new_tokens, tiny.config.eos_ids)
    done = got.output.result()
    found = done.token_ids, done.finish_reason, done.nfe, done.accepted
    assert found == tuple(want)


@pytest.fixture(scope="module")
def changing(tiny):
  """Rows that change their logits and rows that do not, and their tokens.

  Each ran alone in ar, in an engine that nothing disturbs.
  """
  draw = random.Random(19)
  prompts = helpers.prompts_of(
    tiny.config, [draw.choice([3, 20, 40]) for _ in range(12)], seed=5
  )
  rows = [
    RowSettings(draw.choice([5, 130, 260]), ignore_eos=True) for _ in prompts
  ]
  changes = [
    None if i % 2 else Adjustments({9: 5.0 + i}, frequency_penalty=0.2 * i)
    for i in range(len(rows))
  ]
  requests, tokens = list(zip(prompts, rows, changes, strict=True)), []
  _, calm = make_engine(tiny, "ar")
  for prompt, row, change in requests:
    made = calm.submit(prompt, row, changes=change)
    while not made.ended:
      calm.step()
    tokens.append(made.output.token_ids)
  assert calm.scheduler.preemptions == 0
  return requests, tokens


@pytest.mark.parametrize("mode", ["ar", "linear_spec"])
def test_changes_of_logits_go_where_their_row_goes(tiny, changing, mode):
  """Rows that are moved, preempted and put beside others that change nothing."""
  requests, tokens = changing
  _, engine = make_engine(tiny, mode)
  made = [engine.submit(p, row, changes=c) for p, row, c in requests]
  while not engine.idle:
    engine.step()
  assert engine.scheduler.preemptions > 0
  assert [got.output.token_ids for got in made] == tokens


def test_beside_rows_that_run_only_a_short_prompt_is_read_at_once(
  tiny, monkeypatch
):
  monkeypatch.setattr(chunks.ChunkSizes, "tokens", lambda *_: 32)
  seen, dispatch = [], engines.dispatch
  see = lambda *given: (seen.append(given[2]), dispatch(*given))[1]
  monkeypatch.setattr(engines, "dispatch", see)
  _, engine = make_engine(tiny, "ar")
  prompts = helpers.prompts_of(tiny.config, [20, 128, 129])
  made = [engine.submit(p, RowSettings(20), stream=True) for p in prompts]
  while not engine.idle:
    engine.step()
  read = [c for visit in seen for c in visit.chunks]
  sizes = [
    [c.stop - c.start for c in read if c.request is m.request] for m in made
  ]
  assert sizes == [[20], [128], [32] * 4 + [1]]


def test_a_warm_up_leaves_nothing_to_compile(tiny):
  """Whatever comes then: every size of prompt, batch and width, logprobs."""
  draw = random.Random(17)
  widths = Chosen(draw, (1, BLOCK))
  _, engine = make_engine(tiny, "linear_spec", widths=widths)
  keys = list(engine.warm_up(seal=True))
  assert len(keys) == len(set(keys)) == engine.programs
  prompts = helpers.prompts_of(
    tiny.config, [draw.choice([1, 31, 33, 130, 260, 450]) for _ in range(12)]
  )
  requests = [(p, mixed(draw, i)) for i, p in enumerate(prompts)]
  play(engine, draw, requests, first=1)
  assert engine.programs == len(keys)
  with pytest.raises(RuntimeError, match="compiled by the warm-up"):
    engine._runner.programs.get(("read", 7))


def test_a_larger_batch_serves_until_the_smaller_one_is_compiled():
  kind = (False, False, False)
  key = lambda rows, width: ("passes", rows, width, *kind)
  choose = lambda have, count, wanted=9: ready.choose(
    have, 8, (1, 16), count, wanted, kind
  )
  # Nothing is there: one program, for all that wait.
  assert choose(set(), 1) == ready.Choice(8, (16,), None)
  assert choose(set(), 1, 3) == ready.Choice(4, (16,), None)
  assert choose({key(8, 16)}, 2) == ready.Choice(8, [16], key(2, 16))
  both = {key(8, 16), key(2, 1)}
  assert choose(both, 2) == ready.Choice(2, [1], key(2, 16))
  whole = {key(r, w) for r in (1, 2, 4, 8) for w in (1, 16)}
  assert choose(whole, 3) == ready.Choice(4, [1, 16], None)


def test_devices_together_equal_one(tmp_path):
  """Heads of the pool are split; slots and tables are everywhere."""
  tiny = helpers.make_tiny(2, vocab_size=96)
  helpers.write_checkpoint(tmp_path, tiny, lora=True)
  prompts = helpers.prompts_of(tiny.config, (140, 3, 20))
  how = {"max_new_tokens": 12, "mode": "linear_spec", "batch_size": 2}
  one, two = (
    nd.generate(nd.load(str(tmp_path), mesh=mesh), prompts, **how)
    for mesh in (None, "tensor:2")
  )
  assert [o.token_ids for o in one] == [o.token_ids for o in two]


def test_a_request_that_cannot_fit_is_refused(tiny):
  _, engine = make_engine(tiny, "ar", pages=2)
  with pytest.raises(UserError, match="need 3 pages of 128 positions"):
    engine.submit([5] * 250, RowSettings(9))
  with pytest.raises(UserError, match="threshold is a setting of diffusion"):
    engine.submit([5], RowSettings(9, threshold=0.5))
  with pytest.raises(UserError, match="stop strings need a tokenizer"):
    engine.submit([5], RowSettings(9, stop="x"))
  assert engine.idle
