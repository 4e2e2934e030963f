"""What an engine and a stream tell of passes: what is true, to who asks."""

import json

import pytest

pytest.importorskip("fastapi", reason="needs the extra [serve]")
openai = pytest.importorskip("openai", reason="needs the extra [dev]")
http = pytest.importorskip("httpx2", reason="needs the extra [dev]")

from nemodiff_jax.decode.config import RowSettings, decode_config
from nemodiff_jax.decode.generate import stream_ids
from nemodiff_jax.decode.modes import MODES
from nemodiff_jax.decode.trace import trace_passes
from nemodiff_jax.engines import open_engine
from nemodiff_jax.model import Model
from tests import helpers

BLOCK = 8


@pytest.mark.parametrize("mode", helpers.fewer(MODES))
def test_an_engine_tells_the_passes_of_a_row_alone(tiny, mode):
  """Beside a row that nobody watches, and the one that it is."""
  config = decode_config(tiny.config, mode, block_length=BLOCK)
  weights = tiny.weights(True)
  model = Model(tiny.config, None, None, tiny.module, weights)
  engine = open_engine(model, config, rows=2, max_length=128)
  prompts = helpers.prompts_of(tiny.config, (5, 9))
  rows = [RowSettings(21, 0.8, seed=3), RowSettings(30)]
  seen = engine.submit(prompts[0], rows[0], stream=True, traced=True)
  other = engine.submit(prompts[1], rows[1])
  told = {seen: [], other: []}
  while not engine.idle:
    for event in engine.step():
      told[event.generation] += event.passes
  alone = stream_ids(
    tiny.module, weights, config, prompts[:1], rows[:1], traced=True
  )
  want = list(trace_passes(alone))
  assert len(told[seen]) == len(want) > 4 and told[other] == []
  for got, entry in zip(told[seen], want, strict=True):
    sure, wanted = got.pop("confidence"), entry.pop("confidence")
    assert sure == pytest.approx(wanted, abs=2e-4)
    entry.pop("ended")
    assert got == entry
  tokens = [i for entry in told[seen] for i in entry["tokens"]]
  assert tokens == seen.output.token_ids


def test_a_row_that_its_prompt_ends_has_no_pass(tiny):
  config = decode_config(tiny.config, "linear_spec", block_length=BLOCK)
  model = Model(tiny.config, None, None, tiny.module, tiny.weights(True))
  engine = open_engine(model, config, rows=2, max_length=128)
  prompts = helpers.prompts_of(tiny.config, (5, 9))
  one = engine.submit(prompts[0], RowSettings(1), traced=True)
  engine.submit(prompts[1], RowSettings(12))
  told = []
  while not engine.idle:
    told += [p for e in engine.step() if e.generation is one for p in e.passes]
  assert [p["phase"] for p in told] == ["prompt"]
  assert told[0]["tokens"] == one.output.token_ids


ASK = [{"role": "user", "content": "What is 17 + 25 - 8?"}]


@pytest.fixture(scope="module")
def client(embedded):
  _, url, _ = embedded
  return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def choices(stream):
  return [c for chunk in stream for c in chunk.choices]


@pytest.mark.parametrize("mode", ["ar", "linear_spec", "diffusion"])
@pytest.mark.parametrize("stop", [None, "answer"])
def test_the_passes_of_a_stream_add_up_to_its_text(client, mode, stop):
  how = {
    "model": "", "messages": ASK, "temperature": 0, "stream": True,
    "extra_body": {"mode": mode}, "stop": stop,
  }  # fmt: skip
  plain = choices(client.chat.completions.create(**how))
  asked = choices(
    client.chat.completions.create(
      **how, stream_options={"include_passes": True, "include_usage": True}
    )
  )
  text = "".join(c.delta.content or "" for c in asked)
  assert text == "".join(c.delta.content or "" for c in plain) != ""
  assert asked[-1].finish_reason == plain[-1].finish_reason == "stop"
  passes = [p for c in asked for p in getattr(c, "passes", ())]
  assert "".join(t for p in passes for t in p["texts"]) == text
  assert [p["nfe"] for p in passes] == sorted(p["nfe"] for p in passes)
  pieces = {}
  for choice in asked:
    pieces |= getattr(choice, "pieces", {})
  open_slots = [p for p in passes if None in p["canvas"]]
  assert (mode == "ar") == (not open_slots)
  for p in passes:
    known = [i for i in (*p["canvas"], *p["proposed"]) if i is not None]
    assert all(str(i) in pieces for i in known)
    assert all(p["canvas"][s] is None for s in p.get("revealed", ()))


def test_who_does_not_ask_sees_nothing_of_it(embedded):
  _, url, _ = embedded
  body = {"messages": ASK, "temperature": 0, "stream": True}
  text = http.post(f"{url}/v1/chat/completions", json=body, timeout=60).text
  chunks = [json.loads(x[6:]) for x in text.splitlines() if x[:7] == "data: {"]
  keys = {k for c in chunks for choice in c["choices"] for k in choice}
  assert keys == {"index", "delta", "finish_reason", "stop_reason"}


def test_passes_need_a_stream(client):
  options = {"include_passes": True}
  with pytest.raises(openai.BadRequestError, match="stream_options needs"):
    client.chat.completions.create(
      model="", messages=ASK, extra_body={"stream_options": options}
    )


def test_the_helper_for_streams_takes_passes(client):
  """OpenAI's accumulator, which trips over chunks that it does not know."""
  with client.chat.completions.stream(
    model="", messages=ASK, temperature=0,
    stream_options={"include_passes": True},
  ) as stream:  # fmt: skip
    done = stream.get_final_completion()
  assert done.choices[0].message.content.endswith("The answer is 34.")


def test_the_passes_of_every_choice_of_a_completion(client):
  stream = client.completions.create(
    model="", prompt="one two", max_tokens=6, n=2, seed=7, stream=True,
    stream_options={"include_passes": True},
  )  # fmt: skip
  texts, told = ["", ""], ["", ""]
  for choice in choices(stream):
    texts[choice.index] += choice.text
    for p in getattr(choice, "passes", ()):
      told[choice.index] += "".join(p["texts"])
  assert texts == told and all(texts)
