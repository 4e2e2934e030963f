"""Every mode, token for token and pass for pass, against its plain twin."""

import dataclasses

import numpy as np
import pytest

from nemodiff_jax.decode.config import RowSettings, decode_config
from nemodiff_jax.decode.generate import stream_ids
from tests import helpers, twin

SIZES = (3, 17, 9, 1, 30, 64, 5, 21)
LIMITS = (20, 33, 1, 7, 40, 16, 31, 12)
EOS_HEAVY = (11, 23, 40, 58, 71, 90)


@pytest.fixture(scope="module")
def model(tiny):
  scale = helpers.LORA_ALPHA / helpers.LORA_RANK
  return twin.NumpyModel(tiny.config, tiny.params, tiny.lora, scale)


def rows(stops=()):
  return [RowSettings(max_new_tokens=n, stop_token_ids=stops) for n in LIMITS]


def compare(tiny, model, config, expect, stops=(), lora=False):
  prompts = helpers.prompts_of(tiny.config, SIZES)
  got = tiny.decode(config, prompts, rows(stops), lora)
  ends = set(stops) | set(tiny.config.eos_ids)
  for prompt, limit, found in zip(prompts, LIMITS, got, strict=True):
    ids, reason, nfe, accepted = expect(model, prompt, limit, ends)
    assert found.token_ids == ids
    assert (found.finish_reason, found.nfe) == (reason, nfe)
    assert found.accepted == accepted
  return got


@pytest.mark.parametrize("stops", [(), EOS_HEAVY])
def test_ar_matches_twin(tiny, model, stops):
  compare(tiny, model, decode_config(tiny.config, "ar"), twin.ar, stops)


@pytest.mark.parametrize(
  ("size", "threshold", "steps", "stops"),
  [
    (8, 0.9, None, ()),
    (16, 0.5, None, ()),
    (32, 0.9, None, ()),
    (32, 0.5, None, EOS_HEAVY),
    (8, 0.3, None, EOS_HEAVY),
    (8, None, 4, ()),
    (16, None, None, EOS_HEAVY),
    (16, 0.6, 3, ()),
    (32, None, 4, EOS_HEAVY),
    (1, 0.9, None, ()),
  ],
)
def test_diffusion_matches_twin(tiny, model, size, threshold, steps, stops):
  config = decode_config(
    tiny.config,
    "diffusion",
    block_length=size,
    threshold=threshold,
    steps_per_block=steps,
  )
  expect = lambda *a: twin.diffusion(*a, size, threshold, steps)
  compare(tiny, model, config, expect, stops)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(
  ("size", "threshold", "stops"),
  [(8, 0.0, ()), (16, 0.0, EOS_HEAVY), (8, 0.5, ()), (1, 0.0, ())],
)
def test_linear_spec_matches_twin(tiny, model, size, threshold, stops, lora):
  config = decode_config(
    tiny.config, "linear_spec", block_length=size, draft_threshold=threshold
  )
  expect = lambda *a: twin.linear_spec(*a, size, threshold, lora)
  compare(tiny, model, config, expect, stops, lora)


@pytest.mark.parametrize("stops", [(), EOS_HEAVY])
@pytest.mark.parametrize("size", [8, 16, 1])
def test_quadratic_spec_matches_twin(tiny, model, size, stops):
  config = decode_config(tiny.config, "quadratic_spec", block_length=size)
  expect = lambda *a: twin.quadratic_spec(*a, size)
  compare(tiny, model, config, expect, stops)


def test_twin_meets_the_cases_that_matter(tiny, model):
  """The model above does want the mask, and drafts are accepted at times."""
  prompts = helpers.prompts_of(tiny.config, SIZES)
  raw = [model.causal(p).argmax(-1) for p in prompts]
  assert tiny.config.mask_id in np.concatenate(raw)
  config = decode_config(tiny.config, "linear_spec", block_length=8)
  got = tiny.decode(config, prompts, rows())
  assert max(max(g.accepted, default=1) for g in got) > 1
  stopped = tiny.decode(
    decode_config(tiny.config, "ar"), prompts, rows(EOS_HEAVY)
  )
  assert {g.finish_reason for g in stopped} == {"stop", "length"}


MODES = {
  "ar": {},
  "diffusion": {"threshold": 0.5},
  "linear_spec": {},
  "quadratic_spec": {"block_length": 8},
}


SAMPLING = [
  {"temperature": 0.7},
  {"temperature": 1.3, "top_k": 5},
  {"temperature": 1.0, "top_p": 0.8},
  {"temperature": 0.9, "min_p": 0.1},
  {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
  {"temperature": 0.0},
]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_batch_matches_single(tiny, mode, mixed):
  """Rows of one kind, and rows of every kind side by side."""
  config = decode_config(tiny.config, mode, **MODES[mode])
  prompts = helpers.prompts_of(tiny.config, SIZES)
  budget = {"max_thinking_tokens": 4, "end_think_token_id": 77}
  kinds = [{}, *SAMPLING, budget] if mixed else [{}]
  settings = [
    dataclasses.replace(r, seed=7 * i, **kinds[i % len(kinds)])
    for i, r in enumerate(rows(EOS_HEAVY))
  ]
  together = tiny.decode(config, prompts, settings, lora=True)
  for prompt, row, found in zip(prompts, settings, together, strict=True):
    assert tiny.decode(config, [prompt], [row], lora=True) == [found]
  back = tiny.decode(config, prompts[::-1], settings[::-1], lora=True)
  assert back[::-1] == together
  padded = tiny.decode(config, prompts[:3], settings[:3], lora=True, batch=8)
  assert padded == together[:3]


@pytest.mark.parametrize("mode", ["linear_spec", "quadratic_spec"])
@pytest.mark.parametrize("lora", [False, True])
def test_linear_spec_equals_ar(tiny, mode, lora):
  """So does quadratic_spec: greedy self-speculation is lossless."""
  prompts = helpers.prompts_of(tiny.config, SIZES, seed=3)
  ar = tiny.decode(decode_config(tiny.config, "ar"), prompts, rows(EOS_HEAVY))
  config = decode_config(tiny.config, mode)
  spec = tiny.decode(config, prompts, rows(EOS_HEAVY), lora)
  ids = lambda results: [(r.token_ids, r.finish_reason) for r in results]
  assert ids(spec) == ids(ar)


@pytest.mark.parametrize("mode", ["linear_spec", "quadratic_spec"])
def test_sampled_spec_equals_sampled_ar(tiny, mode):
  prompts = helpers.prompts_of(tiny.config, SIZES[:6], seed=5)
  settings = [
    RowSettings(max_new_tokens=24, seed=2**40 + i, **s)
    for i, s in enumerate(SAMPLING)
  ]
  ar = tiny.decode(decode_config(tiny.config, "ar"), prompts, settings)
  spec = tiny.decode(decode_config(tiny.config, mode), prompts, settings)
  assert [s.token_ids for s in spec] == [a.token_ids for a in ar]
  assert max(max(s.accepted) for s in spec) > 2  # The shared noise helps.


def test_seed_reproduces_and_matters(tiny):
  config = decode_config(tiny.config, "ar")
  prompt = helpers.prompts_of(tiny.config, (6,))
  run = lambda seed: tiny.decode(
    config, prompt, [RowSettings(max_new_tokens=12, temperature=1.0, seed=seed)]
  )
  assert run(4) == run(4)
  outs = {tuple(run(s)[0].token_ids) for s in (4, 5, 4 + 2**32)}
  assert len(outs) == 3  # Both words of the seed count.


@pytest.mark.parametrize("mode", MODES)
def test_mask_is_never_emitted(tiny, mode):
  config = decode_config(tiny.config, mode, **MODES[mode])
  prompts = helpers.prompts_of(tiny.config, SIZES, seed=8)
  for temperature in (0.0, 3.0):
    settings = [
      RowSettings(
        max_new_tokens=40, temperature=temperature, seed=i, ignore_eos=True
      )
      for i in range(len(SIZES))
    ]
    for found in tiny.decode(config, prompts, settings):
      assert tiny.config.mask_id not in found.token_ids


@pytest.mark.parametrize("mode", MODES)
def test_max_new_tokens_is_exact(tiny, mode):
  config = decode_config(tiny.config, mode, **MODES[mode])
  limits = list(range(1, 20))
  prompts = helpers.prompts_of(tiny.config, (4,)) * len(limits)
  settings = [RowSettings(max_new_tokens=n, ignore_eos=True) for n in limits]
  found = tiny.decode(config, prompts, settings)
  assert [len(f.token_ids) for f in found] == limits
  assert {f.finish_reason for f in found} == {"length"}


@pytest.mark.parametrize("mode", MODES)
def test_stop_ids_end_a_row_and_ignore_eos_does_not(tiny, mode):
  config = decode_config(tiny.config, mode, **MODES[mode])
  prompts = helpers.prompts_of(tiny.config, (4, 4))
  free = tiny.decode(
    config, prompts, [RowSettings(max_new_tokens=24, ignore_eos=True)] * 2
  )[0].token_ids
  stop = free[5]
  row = RowSettings(24, stop_token_ids=(stop,), ignore_eos=True)
  ended = tiny.decode(config, prompts, [row] * 2)[0]
  assert ended.finish_reason == "stop"
  if mode != "diffusion":  # There the block's end moves with the stop.
    assert ended.token_ids == free[: free.index(stop) + 1]
  eos = dataclasses.replace(tiny.config, eos_ids=(1, stop))
  model = helpers.Tiny(eos, tiny.params, tiny.lora)
  assert model.decode(config, prompts, [RowSettings(24)] * 2)[0] == ended
  assert model.decode(config, prompts, [row, row])[0] == ended


@pytest.mark.parametrize("mode", MODES)
def test_generator_matches_loop(tiny, mode):
  config = decode_config(tiny.config, mode, **MODES[mode])
  prompts = helpers.prompts_of(tiny.config, SIZES[:4])
  settings = rows(EOS_HEAVY)[:4]
  steps = [
    step.results()
    for step in stream_ids(
      tiny.module, tiny.weights(True), config, prompts, settings
    )
  ]
  assert steps[-1] == tiny.decode(config, prompts, settings, lora=True)
  for before, after in zip(steps, steps[1:], strict=False):
    for old, new in zip(before, after, strict=True):  # Only ever appended to.
      assert new.token_ids[: len(old.token_ids)] == old.token_ids
      assert old.nfe <= new.nfe <= old.nfe + 1


def test_long_prompts_prefill_in_chunks(tiny):
  """Prompts beyond one chunk, next to a short one.

  quadratic_spec's masks share the last chunk; the other modes read as ar does.
  """
  config = dataclasses.replace(tiny.config, max_positions=4096)
  long = helpers.Tiny(config, tiny.params, tiny.lora)
  prompts = helpers.prompts_of(config, (700, 3, 512, 1030))
  settings = [RowSettings(max_new_tokens=6)] * 4
  for mode in ("ar", "quadratic_spec"):
    how = decode_config(config, mode, **MODES[mode])
    together = long.decode(how, prompts, settings)
    alone = [long.decode(how, [p], settings[:1])[0] for p in prompts[:2]]
    assert together[:2] == alone
  model = twin.NumpyModel(config, tiny.params)
  ids, *_ = twin.ar(model, prompts[0], 6, config.eos_ids)
  ar = long.decode(decode_config(config, "ar"), prompts[:1], settings[:1])
  assert ar[0].token_ids == ids
