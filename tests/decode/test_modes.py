"""Every mode, token for token and pass for pass, against its plain twin."""

import dataclasses

import numpy as np
import pytest

from nemodiff_jax.decode.config import RowSettings, decode_config
from nemodiff_jax.decode.generate import stream_ids
from tests import helpers, twin
from tests.decode.batch import (
  LIMITS,
  MODES,
  SAMPLING,
  SIZES,
  STOPS,
  decode,
  prompts_of,
  rows,
  unsaid,
)


@pytest.fixture(scope="module")
def model(tiny):
  scale = helpers.LORA_ALPHA / helpers.LORA_RANK
  return twin.NumpyModel(tiny.config, tiny.params, tiny.lora, scale)


def compare(tiny, model, config, expect, lora=True, turn=0):
  """Every other row has stop ids besides the model's own."""
  prompts, eos = prompts_of(tiny), tiny.config.eos_ids
  stops = [STOPS if (i + turn) % 2 else () for i in range(len(SIZES))]
  settings = [
    dataclasses.replace(row, stop_token_ids=own)
    for row, own in zip(rows(), stops, strict=True)
  ]
  got = tiny.decode(config, prompts, settings, lora)
  for prompt, limit, own, found in zip(
    prompts, LIMITS, stops, got, strict=True
  ):
    ids, reason, nfe, accepted = expect(model, prompt, limit, {*own, *eos})
    assert found.token_ids == ids
    assert (found.finish_reason, found.nfe) == (reason, nfe)
    assert found.accepted == accepted
  return got


@pytest.mark.parametrize("turn", [0, 1])
def test_ar_matches_twin(tiny, model, turn):
  config = decode_config(tiny.config, "ar")
  compare(tiny, model, config, twin.ar, turn=turn)


@pytest.mark.parametrize(
  ("size", "threshold", "steps", "turn"),
  [
    (8, 0.9, None, 0),
    (8, 0.5, None, 1),
    (32, 0.9, None, 0),
    (32, 0.5, None, 1),
    (8, 0.3, None, 1),
    (8, None, 4, 0),
    (32, None, None, 1),
    (8, 0.6, 3, 0),
    (32, None, 4, 1),
    (1, 0.9, None, 0),
  ],
)
def test_diffusion_matches_twin(tiny, model, size, threshold, steps, turn):
  config = decode_config(
    tiny.config,
    "diffusion",
    block_length=size,
    threshold=threshold,
    steps_per_block=steps,
  )
  expect = lambda *a: twin.diffusion(*a, size, threshold, steps)
  compare(tiny, model, config, expect, turn=turn)


@pytest.mark.parametrize(
  ("size", "threshold", "steps"), [(8, 0.5, None), (16, None, 4), (32, 0.9, 3)]
)
def test_holes_match_the_twin(tiny, model, size, threshold, steps):
  """What follows is seen, not changed; a later hole in it stays open."""
  config = decode_config(
    tiny.config, "diffusion", block_length=size, threshold=threshold,
    steps_per_block=steps,
  )  # fmt: skip
  behind = [7, 12, 40, 41, *[tiny.config.mask_id] * 2, 13, 9, 22, 5]
  prompts, limits = prompts_of(tiny)[:4], (3, 11, 6, 20)
  cuts = [behind, behind, behind[:2], behind[4:]]
  settings = [
    RowSettings(n, following=f) for n, f in zip(limits, cuts, strict=True)
  ]
  got = tiny.decode(config, prompts, settings)
  eos = set(tiny.config.eos_ids)
  blind = tiny.decode(config, prompts, [RowSettings(n) for n in limits])
  for found, prompt, n, following in zip(
    got, prompts, limits, cuts, strict=True
  ):
    ids, reason, nfe, _ = twin.diffusion(
      model, prompt, n, eos, size, threshold, steps, following
    )
    assert found.token_ids == ids
    assert (found.finish_reason, found.nfe) == (reason, nfe)
  assert [g.token_ids for g in got] != [b.token_ids for b in blind]


@pytest.mark.parametrize(
  ("size", "threshold", "turn", "lora"),
  [
    (8, 0.0, 0, False),
    (8, 0.5, 1, False),
    (8, 0.0, 0, True),
    (8, 0.5, 1, True),
    (16, 0.0, 1, True),
    (1, 0.0, 0, True),
  ],
)
def test_linear_spec_matches_twin(tiny, model, size, threshold, turn, lora):
  config = decode_config(
    tiny.config, "linear_spec", block_length=size, draft_threshold=threshold
  )
  expect = lambda *a: twin.linear_spec(*a, size, threshold, lora)
  compare(tiny, model, config, expect, lora, turn)


@pytest.mark.parametrize(("size", "turn"), [(8, 0), (8, 1), (16, 1), (1, 0)])
def test_quadratic_spec_matches_twin(tiny, model, size, turn):
  config = decode_config(tiny.config, "quadratic_spec", block_length=size)
  expect = lambda *a: twin.quadratic_spec(*a, size)
  compare(tiny, model, config, expect, turn=turn)


def test_twin_meets_the_cases_that_matter(tiny, model):
  """The model does want the mask; drafts are refused, and taken whole."""
  raw = [model.causal(p).argmax(-1) for p in prompts_of(tiny)]
  assert tiny.config.mask_id in np.concatenate(raw)
  for mode in ("linear_spec", "quadratic_spec"):
    taken = {n for g in decode(tiny, mode, rows()) for n in g.accepted}
    assert {1, 8} <= taken
  stopped = decode(tiny, "ar", rows(STOPS))
  assert {g.finish_reason for g in stopped} == {"stop", "length"}
  # In the middle of a block too, where what was drafted behind it is dropped.
  assert any(
    1 < len(g.token_ids) < n for g, n in zip(stopped, LIMITS, strict=True)
  )


@pytest.mark.parametrize("mode", helpers.fewer(MODES))
def test_batch_matches_single(tiny, mode):
  """Rows of every kind side by side, in any company and alone."""
  config = decode_config(tiny.config, mode, **MODES[mode])
  prompts = prompts_of(tiny)
  budget = {"max_thinking_tokens": 4, "end_think_token_id": unsaid(tiny)}
  settings = [
    dataclasses.replace(r, seed=7 * i, **kind)
    for i, (r, kind) in enumerate(
      zip(rows(STOPS), [{}, *SAMPLING, budget], strict=True)
    )
  ]
  together = decode(tiny, mode, settings)

  def again(chosen, **more):
    asked = [prompts[i] for i in chosen], [settings[i] for i in chosen]
    found = tiny.decode(config, *asked, lora=True, **more)
    assert found == [together[i] for i in chosen]

  # Greedy and filtered rows; noise alone needs no filter.
  for row in (0, 2, 3, 6, *([1] if mode == "ar" else [])):
    again([row])
  again(range(7, -1, -1))
  for few in ([0, 1, 2], [4, 1], [1, 5, 6, 7]):
    again(few, batch=8)


@pytest.mark.parametrize(
  ("mode", "lora"),
  [("linear_spec", False), ("linear_spec", True), ("quadratic_spec", True)],
)
def test_spec_equals_ar(tiny, mode, lora):
  """Greedy self-speculation is lossless, whatever drafts."""
  ar = decode(tiny, "ar", rows(STOPS), seed=3)
  config = decode_config(tiny.config, mode, **MODES[mode])
  spec = tiny.decode(config, prompts_of(tiny, 3), rows(STOPS), lora)
  ids = lambda results: [(r.token_ids, r.finish_reason) for r in results]
  assert ids(spec) == ids(ar)


@pytest.mark.parametrize("mode", ["linear_spec", "quadratic_spec"])
def test_sampled_spec_equals_sampled_ar(tiny, mode):
  settings = [
    RowSettings(max_new_tokens=24, seed=2**40 + i, **s)
    for i, s in enumerate([*SAMPLING, *SAMPLING[:2]])
  ]
  ar = decode(tiny, "ar", settings, seed=5)
  spec = decode(tiny, mode, settings, seed=5)
  assert [s.token_ids for s in spec] == [a.token_ids for a in ar]
  assert max(max(s.accepted) for s in spec) > 2  # The shared noise helps.


def test_seed_reproduces_and_matters(tiny):
  """Both words of the seed count."""
  prompts = [prompts_of(tiny)[1]] * len(SIZES)
  config = decode_config(tiny.config, "ar")
  row = RowSettings(12, temperature=1.0, top_k=90)
  seeds = (4, 5, 4 + 2**32) * 2
  settings = [dataclasses.replace(row, seed=s) for s in (*seeds, 4, 5)]
  run = lambda: tiny.decode(config, prompts, settings, lora=True)
  outs = [tuple(found.token_ids) for found in run()]
  assert outs == [tuple(found.token_ids) for found in run()]
  assert outs[:3] == outs[3:6] and len(set(outs)) == 3


@pytest.mark.parametrize("mode", helpers.fewer(MODES))
def test_mask_is_never_emitted(tiny, mode):
  for cold in (0, 1):
    settings = [
      RowSettings(
        max_new_tokens=40,
        temperature=0.0 if i % 2 == cold else 3.0,
        top_k=90,  # Of 97.
        seed=i,
        ignore_eos=True,
      )
      for i in range(len(SIZES))
    ]
    for found in decode(tiny, mode, settings, seed=8):
      assert tiny.config.mask_id not in found.token_ids


@pytest.mark.parametrize("mode", MODES)
def test_max_new_tokens_is_exact(tiny, mode):
  for least in (1, 9, 17):
    limits = list(range(least, least + 8))
    settings = [RowSettings(max_new_tokens=n, ignore_eos=True) for n in limits]
    found = decode(tiny, mode, settings)
    assert [len(f.token_ids) for f in found] == limits
    assert {f.finish_reason for f in found} == {"length"}


@pytest.mark.parametrize("mode", helpers.fewer(MODES))
def test_stop_ids_end_a_row_and_ignore_eos_does_not(tiny, mode):
  free = decode(tiny, mode, RowSettings(24, ignore_eos=True))[0].token_ids
  stop = free[5]
  row = RowSettings(24, stop_token_ids=(stop,), ignore_eos=True)
  ended = decode(tiny, mode, row)[0]
  assert ended.finish_reason == "stop"
  if mode != "diffusion":  # There the block's end moves with the stop.
    assert ended.token_ids == free[: free.index(stop) + 1]
  eos = dataclasses.replace(tiny.config, eos_ids=(1, stop))
  model = helpers.Tiny(eos, tiny.params, tiny.lora)
  config = decode_config(eos, mode, **MODES[mode])
  settings = [RowSettings(24), *[row] * (len(SIZES) - 1)]
  found = model.decode(config, prompts_of(tiny), settings, lora=True)
  assert found[0] == ended
  assert found == decode(tiny, mode, row)


@pytest.mark.parametrize("mode", MODES)
def test_generator_matches_loop(tiny, mode):
  config = decode_config(tiny.config, mode, **MODES[mode])
  settings = rows(STOPS)
  steps = [
    step.results()
    for step in stream_ids(
      tiny.module, tiny.weights(True), config, prompts_of(tiny), settings
    )
  ]
  assert steps[-1] == decode(tiny, mode, settings)
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
  model = twin.NumpyModel(config, tiny.params)
  expect = {
    "ar": twin.ar,
    "quadratic_spec": lambda *a: twin.quadratic_spec(*a, 8),
  }
  for mode, alone in expect.items():
    how = decode_config(config, mode, **MODES[mode])
    together = long.decode(how, prompts, [RowSettings(max_new_tokens=3)] * 4)
    for prompt, found in zip(prompts, together, strict=True):
      want = alone(model, prompt, 3, config.eos_ids)
      assert (found.token_ids, found.finish_reason) == want[:2]
      assert (found.nfe, found.accepted) == want[2:]
