"""The engine of a server: grammars, penalties, predictions, scores, lanes."""

import dataclasses
import json
import re
import threading

import numpy as np
import pytest

from nemodiff_jax import serving
from nemodiff_jax.decode.config import RowSettings, decode_config
from nemodiff_jax.errors import UserError
from nemodiff_jax.model import Model
from nemodiff_jax.serve import chunks, ready
from nemodiff_jax.serve.contract import Adjustments, Job
from nemodiff_jax.serve.lanes import Lanes
from nemodiff_jax.serve.programs import Programs
from tests import helpers, twin
from tests.serve import fakes

pytest.importorskip("llguidance", reason="needs the extra [serve]")
FEWER = helpers.fewer(["linear_spec", "quadratic_spec"])


@pytest.fixture(scope="module")
def tiny():
  """A random model of bytes."""
  return helpers.make_tiny(
    1, vocab_size=fakes.SIZE, mask_id=fakes.MASK, eos_ids=(fakes.EOS,)
  )


@pytest.fixture(autouse=True, scope="module")
def few_sizes():
  """Prompts are read in chunks of two sizes; no other batch size pays."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(chunks, "SIZES", (32, 128))
    patch.setattr(ready, "pays", lambda *_: False)
    yield


@pytest.fixture(scope="module")
def lanes(tiny):
  """The whole engine; linear_spec is its own mode."""
  model = Model(
    tiny.config, fakes.ByteTokenizer(), None, tiny.module, tiny.weights(True)
  )
  config = decode_config(tiny.config, "linear_spec")
  return serving.open_server(
    model, config, name="bytes", rows=4, max_length=400
  )


def run(lanes, *jobs):
  """What the events of each job add up to."""
  _, engine = lanes
  made = [engine.submit(job) for job in jobs]
  said = {request: [] for request in made}
  ends, scores = {}, {}
  while engine.busy():
    for event in engine.step():
      said[event.request] += event.token_ids
      if event.prompt_logprobs is not None:
        scores[event.request] = event.prompt_logprobs
      if event.finish_reason is not None:
        ends[event.request] = event
  return [(said[r], ends[r], scores.get(r)) for r in made]


def job(text, tokens=24, mode=None, **more):
  row = RowSettings(tokens, **more.pop("row", {}))
  return Job(list(text.encode()), row, mode=mode, **more)


def penalised(logits, said, prompt, changes):
  """The rules once more, a token at a time."""
  logits = logits.astype(np.float64).copy()
  for token, value in changes.logit_bias.items():
    logits[token] += value
  if changes.allowed_token_ids is not None:
    for token in set(range(len(logits))) - set(changes.allowed_token_ids):
      logits[token] = -np.inf
  for word in changes.bad_words:
    if list(said[len(said) - len(word) + 1 :]) == list(word[:-1]):
      logits[word[-1]] = -np.inf
  if len(said) < changes.min_tokens:
    logits[fakes.EOS] = -np.inf
  for token in set(said) | set(prompt):
    factor = changes.repetition_penalty
    logits[token] *= 1 / factor if logits[token] > 0 else factor
  for token in set(said):
    logits[token] -= changes.presence_penalty
    logits[token] -= changes.frequency_penalty * said.count(token)
  return logits


def expected(tiny, asked):
  """Greedy ar with these changes, by the twin."""
  model, said = twin.NumpyModel(tiny.config, tiny.params), []
  while len(said) < asked.row.max_new_tokens and fakes.EOS not in said:
    logits = model.causal([*asked.prompt, *said])[-1]
    logits[fakes.MASK] = -np.inf
    changed = penalised(logits, said, asked.prompt, asked.adjust)
    said.append(int(changed.argmax()))
  return said


CHANGES = {
  "bias": Adjustments(logit_bias={65: 9.0, 66: 8.5, 70: -20.0}),
  "presence": Adjustments(presence_penalty=1.9),
  "frequency": Adjustments(frequency_penalty=1.5),
  "repetition": Adjustments(repetition_penalty=1.7),
  "below one": Adjustments(repetition_penalty=0.8, presence_penalty=-1.0),
  "allowed": Adjustments(allowed_token_ids=[97, 98, 99, 100]),
  "at least": Adjustments(logit_bias={fakes.EOS: 60.0}, min_tokens=9),
  "all": Adjustments({80: 3.0}, 0.5, 0.4, 1.2, min_tokens=4),
  # The last token is one of two: it counts once, not twice.
  "often": Adjustments(frequency_penalty=1.0, allowed_token_ids=[97, 98]),
  "below 0": Adjustments(
    {97: -40.0, 98: -40.5, 100: -42.0, 101: -43.0}, repetition_penalty=1.2,
    allowed_token_ids=[97, 98, 100, 101],  # The prompt holds two of them.
  ),
}  # fmt: skip


@pytest.mark.parametrize("mode", ["ar", *FEWER])
def test_changes_of_logits_are_those_of_plain_ar(lanes, tiny, mode):
  """Slots of a draft count exactly the tokens before them."""
  jobs = [job("abca", mode=mode, adjust=c) for c in CHANGES.values()]
  free = job("abca", mode=mode)
  *got, plain = run(lanes, *jobs, free)
  for name, asked, (said, end, _) in zip(CHANGES, jobs, got, strict=True):
    assert said == expected(tiny, asked), name
    assert end.counts.mode == mode
  alone = dataclasses.replace(free, adjust=Adjustments())
  assert plain[0] == expected(tiny, alone)
  if mode == "ar":
    return
  # A random model's drafts are wrong: where they are right, later slots count.
  told = [
    dataclasses.replace(asked, prediction=expected(tiny, asked))
    for asked in jobs
  ]
  for name, asked, (said, end, _) in zip(
    CHANGES, told, run(lanes, *told), strict=True
  ):
    assert said == list(asked.prediction), name
    assert end.counts.predicted > len(said) // 2, name


@pytest.mark.parametrize("mode", ["ar", *FEWER])
def test_words_of_several_tokens_are_not_said(lanes, tiny, mode):
  (free,) = run(lanes, job("abca", mode=mode))
  words = [free[0][1:3], free[0][6:9]]
  asked = job("abca", mode=mode, adjust=Adjustments(bad_words=words))
  ((said, *_),) = run(lanes, asked)
  assert said == expected(tiny, asked) != free[0]


def test_diffusion_says_what_it_cannot(lanes):
  asked = job("ab", mode="diffusion", adjust=Adjustments(bad_words=[[1, 2]]))
  with pytest.raises(UserError, match="use another mode"):
    run(lanes, asked)
  one = job(
    "ab", mode="diffusion", adjust=Adjustments(allowed_token_ids=[97, 98])
  )
  ((said, *_),) = run(lanes, one)
  assert said and set(said) <= {97, 98}


SCHEMA = {
  "type": "object",
  "properties": {
    "name": {"type": "string", "maxLength": 5},
    "age": {"type": "integer", "minimum": 0, "maximum": 99},
  },
  "required": ["name", "age"],
  "additionalProperties": False,
}


@pytest.mark.parametrize(
  ("temperature", "mode"),
  [
    (0.0, "linear_spec"),
    pytest.param(0.8, "linear_spec", marks=pytest.mark.slow),
    pytest.param(0.0, "quadratic_spec", marks=pytest.mark.slow),
    pytest.param(0.8, "quadratic_spec", marks=pytest.mark.slow),
  ],
)
def test_a_grammar_gives_what_constrained_ar_gives(lanes, temperature, mode):
  """In any mode, beside rows that run free; it is what was asked for."""
  from nemodiff_jax.serve.structured import Spec

  served, _ = lanes
  spec = Spec("response_format", "json", json.dumps(SCHEMA))
  row = {"temperature": temperature, "seed": 3}
  found, shapes = {}, set()
  for each in ("ar", mode):
    asked = [
      job(text, 90, mode=each, row=row, grammar=served.grammars.matcher(spec))
      for text in ("a", "json please")
    ]
    beside = job("free", 120, mode=each, row={"ignore_eos": True})
    # Nothing of this is forced: the first pass drafts.
    digits = served.grammars.matcher(Spec("regex", "regex", "[0-9]{4}-[a-f]+"))
    free = job("x", 9, mode=each, row=row, grammar=digits)
    *got, (said, *_), _ = run(lanes, *asked, free, beside)
    assert re.match(rb"[0-9]{4}-[a-f]{4}", bytes(said))
    shapes.add(tuple(said))
    found[each] = [said for said, *_ in got]
    for said, end, _ in got:
      assert end.finish_reason == "stop"
      made = json.loads(bytes(said[:-1]).decode())
      assert len(made["name"]) <= 5 and 0 <= made["age"] <= 99
  assert found["ar"] == found[mode]
  assert len(shapes) == 1


def test_a_grammar_needs_no_end_of_its_own(lanes):
  """With ignore_eos nothing can follow: the row ends all the same."""
  from nemodiff_jax.serve.structured import Spec

  served, _ = lanes
  spec = Spec("regex", "regex", "(yes|no)")
  asked = job(
    "a", 30, row={"ignore_eos": True}, grammar=served.grammars.matcher(spec)
  )
  ((said, end, _),) = run(lanes, asked)
  assert bytes(said[:-1]) in (b"yes", b"no") and end.finish_reason == "stop"


@pytest.mark.parametrize("mode", FEWER)
def test_a_prediction_changes_no_token_and_saves_passes(lanes, mode):
  ((want, end, _),) = run(lanes, job("abca", 60, mode=mode))
  guesses = {
    "right": want,
    "one wrong": [*want[:20], 7, *want[21:]],
    "one missing": [*want[:20], *want[21:]],
    "useless": list(b"xyz" * 20),
  }
  for name, guess in guesses.items():
    asked = job("abca", 60, mode=mode, prediction=guess)
    ((said, told, _),) = run(lanes, asked)
    assert said == want, name
    counts = told.counts
    if name == "useless":
      assert counts.predicted < 6
    else:
      assert counts.predicted > 40 and counts.nfe < end.counts.nfe
  assert end.counts.predicted == 0


@pytest.mark.parametrize("start", [0, 1, 5, 150])
def test_scores_of_a_prompt_are_those_of_the_twin(lanes, tiny, start):
  draw = np.random.default_rng(2)
  prompt = draw.integers(0, 250, 151 + start % 3).tolist()
  row = RowSettings(3)
  scored = Job(prompt, row, prompt_logprobs=(start, 2))
  only = Job(prompt, row, score_only=True, prompt_logprobs=(start, 2))
  (said, _, first), (none, end, second) = run(lanes, scored, only)
  assert len(said) == 3 and none == [] and end.finish_reason == "length"
  model = twin.NumpyModel(tiny.config, tiny.params)
  logits = model.causal(prompt)
  logits[:, fakes.MASK] = -np.inf
  logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
  for found in (first, second):
    assert len(found.token) == len(prompt) - start
    for at, value, ids in zip(
      range(start, len(prompt)), found.token, found.top_ids, strict=True
    ):
      if at == 0:
        assert value is None and ids == []
      else:
        assert value == pytest.approx(logits[at - 1, prompt[at]], abs=1e-3)
        assert ids == np.argsort(-logits[at - 1])[:2].tolist()


class Stub:
  """An engine that has so many visits to do, or waits for others' pages."""

  def __init__(self, visits):
    self.visits, self.flying, self.preparing = visits, 0, 0

  @property
  def idle(self):
    return self.visits == 0

  def step(self):
    self.flying = int(self.visits > 0)
    self.visits -= self.flying
    return []


def test_a_lane_that_waits_for_pages_does_not_keep_others_waiting():
  """It takes no time, so it would always be next."""
  stubs = {("ar", 1): Stub(-1), ("linear_spec", 8): Stub(5)}
  engine = Lanes(stubs.__getitem__, None, ("ar", 1), {"linear_spec": 8})
  engine._lane(("linear_spec", 8)).seconds = 100.0
  for left in (4, 3, 2, 1, 0):
    assert engine.busy()
    engine.step()
    assert stubs["linear_spec", 8].visits == left


def test_a_program_that_is_compiled_keeps_no_other_row_waiting(
  lanes, monkeypatch
):
  """Neither those of other lanes nor those of the same one."""
  _, engine = lanes
  run(lanes, job("warm", 4))
  gate, asked = threading.Event(), []
  compile_ = Programs._compile

  def slow(programs, key):
    assert threading.current_thread() is not threading.main_thread(), key
    asked.append(key)
    assert gate.wait(60)
    compile_(programs, key)

  # Of lanes of their own, as no other test has them.
  monkeypatch.setattr(Programs, "_compile", slow)
  cold = engine.submit(job("cold", 5, mode="linear_spec", block_length=16))
  like = engine.submit(job("cold", 5, row={"logprobs": 1}, block_length=16))
  gone = engine.submit(job("gone", 5, mode="linear_spec", block_length=16))
  assert engine.statistics()["waiting"] == 3
  engine.cancel(gone)
  warm, said, ends = engine.submit(job("warm two", 30)), {}, set()

  def until(*wanted):
    while not ends.issuperset(wanted):
      for event in engine.step():
        said.setdefault(event.request, []).extend(event.token_ids)
        if event.finish_reason is not None:
          ends.add(event.request)

  until(warm)
  assert asked and len(said[warm]) == 30 and set(said) == {warm}
  assert engine.statistics()["waiting"] == 2
  gate.set()
  until(cold, like)
  assert said[cold] == said[like]
  monkeypatch.undo()
  ((own, _, _),) = run(lanes, job("cold", 5, mode="ar"))
  assert own == said[cold] and not engine.busy()


def test_a_program_that_cannot_be_compiled_is_told_of(lanes, monkeypatch):
  """By the step that needs it, which is the engine's end."""
  _, engine = lanes

  def fail(programs, key):
    raise RuntimeError("no room for the program")

  monkeypatch.setattr(Programs, "_compile", fail)
  request = engine.submit(job("cold", 5, mode="linear_spec", block_length=4))
  with pytest.raises(RuntimeError, match="no room"):
    while engine.busy():
      engine.step()
  engine.cancel(request)


@pytest.mark.parametrize("mode", FEWER)
def test_lanes_take_turns_and_share_pages(lanes, mode):
  _, engine = lanes
  text = "x" * 300
  run(lanes, job(text, 4, mode="ar"))
  got = run(lanes, *(job(text, 8, mode=m) for m in ("ar", mode, "diffusion")))
  assert [end.counts.reused for _, end, _ in got] == [256] * 3
  assert got[0][0] == got[1][0]
  figures = engine.statistics()
  assert figures["lanes"] >= 3 and figures["running"] == 0
  assert figures["pages_used"] == 0 and figures["pages_cached"] >= 2
  assert engine.flush() and engine.statistics()["pages_cached"] == 0
