"""Log-probabilities, stop strings and thinking budgets, in every mode."""

import dataclasses

import numpy as np
import pytest

from nemodiff_jax.decode.config import RowSettings, decode_config
from nemodiff_jax.decode.generate import stream_ids
from nemodiff_jax.decode.trace import trace_passes
from nemodiff_jax.errors import UserError
from tests import helpers, twin
from tests.decode.batch import MODES, SIZES, decode, prompts_of, unsaid

# What rows of every test keep: as many log-probabilities in one program.
TOP = 5


class Words:
  """A tokenizer of words 'w<i> '."""

  def encode(self, text):
    return [int(w[1:]) for w in text.split()]

  def decode(self, ids):
    return "".join(f"w{i} " for i in ids)

  def id_of(self, token):
    return None


def log_softmax(x):
  x = x - x.max()
  return x - np.log(np.exp(x).sum())


def keeping(row, other=None):
  """Rows of both kinds by turns, in the program that all tests share."""
  most = RowSettings(9, 0.9, top_k=3, logprobs=TOP)
  rows = [row, other or row] * (len(SIZES) // 2)
  return [*rows[:-1], most]


def test_logprobs_of_ar_are_those_of_the_twin(tiny):
  rows = keeping(RowSettings(12, logprobs=3))
  model = twin.NumpyModel(tiny.config, tiny.params)
  for prompt, found in zip(
    prompts_of(tiny)[:-1], decode(tiny, "ar", rows)[:-1], strict=True
  ):
    ids = found.token_ids
    logits = model.causal(prompt + ids)[len(prompt) - 1 : -1]
    logits[:, tiny.config.mask_id] = -np.inf
    for t, token in enumerate(ids):
      want = log_softmax(logits[t])
      assert found.logprobs.token[t] == pytest.approx(want[token], abs=1e-3)
      best = np.argsort(-want)[:3]
      assert found.logprobs.top_ids[t] == best.tolist()
      assert found.logprobs.top[t] == pytest.approx(want[best], abs=1e-3)


@pytest.mark.parametrize("mode", ["linear_spec", "quadratic_spec"])
def test_logprobs_of_spec_are_those_of_ar(tiny, mode):
  """Of greedy rows and of sampled ones."""
  row = RowSettings(20, seed=3, logprobs=2, top_p=0.95)
  rows = keeping(row, dataclasses.replace(row, temperature=0.9))
  for ar, spec in zip(
    decode(tiny, "ar", rows), decode(tiny, mode, rows), strict=True
  ):
    assert ar.token_ids == spec.token_ids
    np.testing.assert_allclose(
      ar.logprobs.token, spec.logprobs.token, rtol=1e-3, atol=1e-3
    )
    assert ar.logprobs.top_ids == spec.logprobs.top_ids


def test_logprobs_are_of_the_distribution_sampled_from(tiny):
  row = RowSettings(16, 1.2, top_k=3, seed=1, logprobs=TOP)
  found = decode(tiny, "diffusion", row)[0]
  for token, ids, top, chosen in zip(
    found.token_ids,
    found.logprobs.top_ids,
    found.logprobs.top,
    found.logprobs.token,
    strict=True,
  ):
    assert len(ids) == 3 and token in ids  # The filter kept three.
    assert np.exp(top).sum() == pytest.approx(1, abs=1e-4)
    assert chosen == pytest.approx(top[ids.index(token)], abs=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_logprobs_change_nothing_and_come_when_asked(tiny, mode):
  plain = decode(tiny, mode, RowSettings(9))
  rows = keeping(RowSettings(9), RowSettings(9, logprobs=0))
  none = [RowSettings(9), RowSettings(9, logprobs=0)] * 4
  for settings in (rows, none) if mode == "linear_spec" else (rows,):
    asked = decode(tiny, mode, settings)
    assert [a.token_ids for a in asked[:7]] == [p.token_ids for p in plain[:7]]
    assert asked[0].logprobs is None
    assert len(asked[1].logprobs.token) == 9
    assert asked[1].logprobs.top_ids == [[]] * 9


@pytest.mark.parametrize("mode", helpers.fewer(MODES))
def test_stop_string_ends_the_row_with_its_token(tiny, mode):
  free = decode(tiny, mode, RowSettings(30))
  stops, ends = [], []
  for found in free:  # Two tokens in the middle of each row's output.
    text = Words().decode(found.token_ids)
    stop = Words().decode(found.token_ids[7:9])[1:-1]
    stops.append(stop)
    upto = text.index(stop) + len(stop)
    ends.append(text[:upto].count("w"))
  rows = [RowSettings(30, stop=s) for s in stops]
  found = decode(tiny, mode, rows, tokenizer=Words())
  for was, now, stop, end in zip(free, found, stops, ends, strict=True):
    assert now.token_ids == was.token_ids[:end]
    assert now.finish_reason == "stop" and now.nfe <= was.nfe
    assert now.text == Words().decode(was.token_ids).split(stop)[0]
  alone = decode(tiny, mode, rows[0], tokenizer=Words())[0]
  assert alone == found[0]


def test_text_without_a_stop_leaves_out_the_eos(tiny):
  free = decode(tiny, "ar", RowSettings(9))[0].token_ids
  row = RowSettings(9, stop_token_ids=(free[4],), stop="never")
  found = decode(tiny, "ar", row, tokenizer=Words())[0]
  assert found.text == Words().decode(free[: free.index(free[4])])
  with pytest.raises(UserError, match="stop strings need a tokenizer"):
    decode(tiny, "ar", row)


@pytest.mark.parametrize("budget", [0, 1, 5, 8, 11])
@pytest.mark.parametrize("mode", MODES)
def test_thinking_budget_forces_its_token(tiny, mode, budget):
  end = unsaid(tiny)
  row = RowSettings(
    20,
    max_thinking_tokens=budget,
    end_think_token_id=end,
    ignore_eos=True,
  )
  ar = decode(tiny, "ar", row)
  found = decode(tiny, mode, row)
  for a, f in zip(ar, found, strict=True):
    ids = f.token_ids
    assert end in ids[: budget + 1] and len(ids) == 20
    if mode != "diffusion":
      assert ids == a.token_ids
  config = decode_config(tiny.config, mode, **MODES[mode])
  prompt = prompts_of(tiny)[2]
  assert tiny.decode(config, [prompt], [row], lora=True)[0] == found[2]


@pytest.mark.parametrize("mode", helpers.fewer(MODES))
def test_a_budget_that_is_not_needed_changes_nothing(tiny, mode):
  """Also in a sampled run; and no token is forced twice."""
  row = RowSettings(24, 0.5, top_k=90, seed=9)
  free = decode(tiny, mode, row)
  for turn in (0, 1):
    rows = [row] * len(SIZES)
    for i in range(turn, len(SIZES), 2):
      end = free[i].token_ids[3]
      rows[i] = dataclasses.replace(
        row, max_thinking_tokens=16, end_think_token_id=end
      )
    again = decode(tiny, mode, rows)
    if mode != "diffusion":  # There the canvas is written at block start.
      assert [a.token_ids for a in again] == [f.token_ids for f in free]


def steps_of(tiny, mode, tokens=20):
  config = decode_config(tiny.config, mode, **MODES[mode])
  prompt = prompts_of(tiny)[2:3]
  return config, prompt, stream_ids(
    tiny.module, tiny.weights(True), config, prompt,
    [RowSettings(tokens)], traced=True,
  )  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_trace_tells_every_pass(tiny, mode):
  config, prompt, run_ = steps_of(tiny, mode)
  entries = list(trace_passes(run_))
  want = tiny.decode(config, prompt, [RowSettings(20)], lora=True)[0]
  assert [i for e in entries for i in e["tokens"]] == want.token_ids
  assert [e["ended"] for e in entries] == [False] * (len(entries) - 1) + [True]
  assert entries[0]["phase"] == "prompt"  # Which diffusion does not count.
  assert len(entries) == want.nfe + (mode == "diffusion")
  assert [e["accepted"] for e in entries if "accepted" in e] == (
    want.accepted or []
  )
  mask = tiny.config.mask_id
  for entry in entries:
    assert all(0 <= c <= 1.0001 for c in entry["confidence"])
    for slot in entry.get("revealed", ()):
      assert entry["canvas"][slot] == mask
    if entry["phase"] == "denoise":
      assert entry["revealed"]


def test_trace_replays_the_threshold_rule(tiny):
  config, _, run_ = steps_of(tiny, "diffusion", 16)
  for entry in trace_passes(run_):
    if entry["phase"] != "denoise":
      continue
    sure = np.array(entry["confidence"])
    masked = np.array(entry["canvas"]) == tiny.config.mask_id
    best = np.argmax(np.where(masked, sure, -1))
    want = set(np.flatnonzero(masked & (sure >= config.threshold))) | {best}
    assert set(entry["revealed"]) == want


def test_untraced_states_hold_no_proposals(tiny):
  _, _, run_ = steps_of(tiny, "ar", 2)
  assert [s.emitted.proposed for s in run_][-1] is not None
  config = decode_config(tiny.config, "ar")
  plain = stream_ids(
    tiny.module, tiny.weights(), config, [[7]], [RowSettings(2)]
  )
  emitted = [s.emitted for s in plain][-1]
  assert emitted.proposed is None and emitted.picked.logprob is None


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("logprobs", 21, "logprobs should be at most 20, got 21"),
    ("logprobs", -1, "logprobs should be a whole number"),
    ("max_thinking_tokens", 1.5, "max_thinking_tokens should be a whole"),
    ("end_think_token_id", "x", "end_think_token_id should be a whole"),
    ("stop", 3, "stop should be a text or a list"),
    ("stop", [""], "no empty text"),
  ],
)
def test_bad_settings_are_named(field, value, message):
  with pytest.raises(UserError, match=message):
    dataclasses.replace(RowSettings(), **{field: value})
