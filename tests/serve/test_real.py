"""The whole server on the embedded checkpoint: HTTP, protocols and engine.

Every answer is compared with `nemodiff_jax.generate` of the same request alone,
or with another mode that has to say the same.
"""

import json
import re
import threading

import pytest

pytest.importorskip("fastapi", reason="needs the extra [serve]")
openai = pytest.importorskip("openai", reason="needs the extra [dev]")
http = pytest.importorskip("httpx2", reason="needs the extra [dev]")

import nemodiff_jax as nd
from tests.serve import servers

ASK = [{"role": "user", "content": "What is 17 + 25 - 8?"}]
OTHER = [{"role": "user", "content": "What is 3 + 4?"}]
RIGHT = (
  "We work from left to right.\n17 + 25 = 42\n42 - 8 = 34\nThe answer is 34."
)


@pytest.fixture(scope="module")
def running(embedded):
  model, url, service = embedded
  client = openai.OpenAI(
    base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300
  )
  yield model, client, url, service
  client.close()


@pytest.fixture(scope="module")
def alone(running):
  """What `generate` makes of one request, by itself."""
  model, *_ = running
  kept = {}

  def run(prompt, **settings):
    settings = {"logprobs": 2} | settings  # One set of programs for all.
    key = json.dumps([prompt, settings])
    if key not in kept:
      (kept[key],) = nd.generate(
        model, [prompt], mode="linear_spec", batch_size=1, **settings
      )
    return kept[key]

  return run


def chat(running, messages=ASK, **given):
  _, client, *_ = running
  extra = {k: given.pop(k) for k in [*given] if k in EXTRA}
  given = {"temperature": 0} | given
  return client.chat.completions.create(
    model="", messages=messages, extra_body=extra, **given
  )


EXTRA = (
  "mode", "block_length", "structured_outputs", "guided_choice", "bad_words",
  "min_tokens", "allowed_token_ids", "repetition_penalty", "stop_token_ids",
  "linear_speculation", "generation_algorithm", "ignore_eos", "top_k",
  "return_token_ids", "steps", "causal_context", "priority",
)  # fmt: skip


def post(running, **body):
  *_, url, _ = running
  found = http.post(f"{url}/generate", json=body, timeout=300)
  assert found.status_code == 200, found.text
  return found.json()


def test_a_chat_whole_and_streamed_says_what_generate_says(running, alone):
  want = alone(ASK, max_new_tokens=200)
  assert want.text == RIGHT
  whole = chat(running, return_token_ids=True)
  (choice,) = whole.choices
  assert choice.message.content == want.text
  assert choice.token_ids == want.token_ids and choice.finish_reason == "stop"
  assert whole.usage.nfe == want.nfe
  assert whole.usage.completion_tokens == len(want.token_ids)
  assert whole.usage.accepted_draft_tokens == sum(want.accepted) - len(
    want.accepted
  )
  chunks = list(
    chat(running, stream=True, stream_options={"include_usage": True})
  )
  *said, usage = chunks
  text = "".join(c.choices[0].delta.content or "" for c in said)
  assert text == want.text and usage.choices == []
  assert usage.usage.nfe == want.nfe and len(said) > 3
  ends = [c.choices[0].finish_reason for c in said]
  assert ends == [None] * (len(ends) - 1) + ["stop"]


def test_seeds_of_choices_are_those_of_generate(running, alone):
  _, client, *_ = running
  both = client.completions.create(
    model="", prompt="one two", n=2, seed=7, max_tokens=6, temperature=1.3
  )
  assert both.usage.seed == 7
  for i, choice in enumerate(both.choices):
    own = {"max_new_tokens": 6, "seed": 7 + i, "temperature": 1.3}
    assert choice.text == alone("one two", **own).text
  assert both.choices[0].text != both.choices[1].text
  drawn = client.completions.create(model="", prompt="one two", max_tokens=6)
  again = client.completions.create(
    model="", prompt="one two", max_tokens=6, seed=drawn.usage.seed
  )
  assert again.choices[0].text == drawn.choices[0].text


def test_stops_and_limits_end_as_those_of_generate(running, alone):
  stopped = chat(running, stop=["42"]).choices[0]
  want = alone(ASK, max_new_tokens=200, stop=["42"])
  assert stopped.message.content == want.text == RIGHT.split("42")[0]
  assert (stopped.finish_reason, stopped.stop_reason) == ("stop", "42")
  tokens = alone(ASK, max_new_tokens=200).token_ids
  by_id = chat(running, stop_token_ids=[tokens[8]]).choices[0]
  assert by_id.stop_reason == tokens[8] and by_id.finish_reason == "stop"
  short = chat(running, max_tokens=5)
  assert short.choices[0].finish_reason == "length"
  assert short.usage.completion_tokens == 5
  assert RIGHT.startswith(short.choices[0].message.content)


def test_logprobs_are_those_of_generate(running, alone):
  want = alone(ASK, max_new_tokens=9, logprobs=2, temperature=1, seed=3)
  found = chat(
    running, max_tokens=9, logprobs=True, top_logprobs=2, temperature=1, seed=3
  ).choices[0]
  rows = found.logprobs.content
  assert [r.logprob for r in rows] == pytest.approx(
    want.logprobs.token, abs=1e-4
  )
  for row, values in zip(rows, want.logprobs.top, strict=True):
    assert [t.logprob for t in row.top_logprobs] == pytest.approx(
      values, abs=1e-4
    )


def test_a_scored_prompt_is_the_same_by_both_protocols(running):
  """And as its tokens were scored when they were said."""
  _, client, *_ = running
  said = client.completions.create(
    model="", prompt="one two", max_tokens=4, logprobs=1, temperature=0,
    extra_body={"return_token_ids": True},
  ).choices[0]  # fmt: skip
  ids = [*said.prompt_token_ids, *said.token_ids]
  echo = client.completions.create(
    model="", prompt=ids, max_tokens=0, echo=True, logprobs=1
  )
  assert echo.usage.completion_tokens == 0
  scores = echo.choices[0].logprobs.token_logprobs
  assert scores[0] is None and len(scores) == len(ids)
  assert scores[-4:] == pytest.approx(said.logprobs.token_logprobs, abs=1e-3)
  made = post(
    running, input_ids=ids, return_logprob=True, logprob_start_len=0,
    top_logprobs_num=1, sampling_params={"max_new_tokens": 0},
  )  # fmt: skip
  meta = made["meta_info"]
  assert meta["finish_reason"] == {"type": "length", "length": 0}
  rows = meta["input_token_logprobs"]
  assert [r[1] for r in rows] == ids and rows[0][0] is None
  assert [r[0] for r in rows[1:]] == pytest.approx(scores[1:], abs=1e-3)
  assert made["output_ids"] == [] == meta["output_token_logprobs"]


@pytest.mark.parametrize(("given", "mode"), [
  ({"mode": "ar"}, "ar"),
  ({"generation_algorithm": "ar_native", "steps": 128}, "ar"),
  ({"linear_speculation": True, "block_length": 16}, "linear_spec"),
])  # fmt: skip
def test_a_mode_or_nvidias_name_of_it_changes_the_passes_alone(
  running, given, mode
):
  found = chat(running, **given)
  assert found.choices[0].message.content == RIGHT
  usage = found.usage
  assert (usage.nfe == usage.completion_tokens) == (mode == "ar")


def test_widths_and_modes_that_are_not_there_are_named(running):
  with pytest.raises(openai.BadRequestError, match="8, 16, auto, got 12") as e:
    chat(running, block_length=12)
  assert e.value.param == "block_length"
  with pytest.raises(openai.BadRequestError, match="ar, diffusion, linear"):
    chat(running, mode="quadratic_spec")


@pytest.mark.parametrize(
  "mode", ["linear_spec", pytest.param("ar", marks=pytest.mark.slow)]
)
def test_an_output_keeps_to_its_form(running, mode):
  given = {"regex": "(The|An) answer is [0-9]{2}\\."}
  found = chat(running, mode=mode, structured_outputs=given).choices[0]
  assert re.fullmatch(given["regex"], found.message.content)
  assert found.finish_reason == "stop"
  one = chat(running, mode=mode, guided_choice=["left", "right"]).choices[0]
  assert one.message.content in ("left", "right")
  with_seed = [
    chat(
      running, mode=m, seed=5, temperature=1.5,
      structured_outputs={"regex": "[0-9 +=]{9}"},
    ).choices[0].message.content
    for m in ("ar", mode)
  ]  # fmt: skip
  assert with_seed[0] == with_seed[1] and len(with_seed[0]) == 9


def test_a_form_that_the_vocabulary_cannot_write_is_refused(running):
  """There is no brace among its tokens."""
  with pytest.raises(openai.BadRequestError, match="vocabulary") as e:
    chat(running, response_format={"type": "json_object"})
  assert e.value.param == "response_format"


def test_an_output_ends_where_the_vocabulary_has_no_way_on(running):
  """Drafts that run into the dead end change nothing."""
  given = {"regex": "[0-9]{2}(\\{|\\[)x"}
  texts = {
    chat(running, mode=mode, structured_outputs=given)
    .choices[0]
    .message.content
    for mode in ("ar", "linear_spec")
  }
  (text,) = texts
  assert re.fullmatch("[0-9]{2}", text)


def test_fields_that_this_checkpoint_cannot_serve_are_named(running):
  _, client, *_ = running
  for field in ("thinking_token_budget", "max_thinking_tokens"):
    with pytest.raises(openai.BadRequestError, match=f"{field} needs") as e:
      client.chat.completions.create(
        model="", messages=ASK, extra_body={field: 5}
      )
    assert e.value.param == field
  with pytest.raises(openai.BadRequestError, match="should lie in") as e:
    client.completions.create(model="", prompt=[320])
  assert e.value.param == "prompt"


def test_changes_of_logits_are_the_same_in_both_modes(running):
  given = {
    "presence_penalty": 1.5, "frequency_penalty": 0.7, "max_tokens": 30,
    "repetition_penalty": 1.2, "logit_bias": {"8": -3}, "min_tokens": 12,
    "bad_words": ["right", "42"],
  }  # fmt: skip
  texts = {
    chat(running, mode=mode, **given).choices[0].message.content
    for mode in ("ar", "linear_spec")
  }
  (text,) = texts
  assert text != RIGHT[: len(text)]
  assert "42" not in text and "right" not in text


def test_a_prediction_saves_passes_and_changes_no_word(running):
  told = {"type": "content", "content": RIGHT}
  plain, guessed = chat(running), chat(running, prediction=told)
  wrong = {"type": "content", "content": "One two three. 4 + 4 = 8"}
  for found in (guessed, chat(running, prediction=wrong)):
    assert found.choices[0].message.content == RIGHT
  assert guessed.usage.nfe < plain.usage.nfe
  details = guessed.usage.completion_tokens_details
  assert details.accepted_prediction_tokens > 20


def test_generate_of_sglang_is_that_of_python(running, alone):
  params = {"max_new_tokens": 12, "temperature": 0}
  want = {p: alone(p, max_new_tokens=12) for p in ("one two", "What is 3")}
  single = post(running, text="one two", sampling_params=params)
  assert single["text"] == want["one two"].text
  assert single["output_ids"] == want["one two"].token_ids
  many = post(running, text=[*want], sampling_params=params)
  assert [m["text"] for m in many] == [w.text for w in want.values()]
  *_, url, _ = running
  body = {"text": "one two", "sampling_params": params, "stream": True}
  with http.stream("POST", f"{url}/generate", json=body, timeout=60) as got:
    lines = [x[6:] for x in got.iter_lines() if x.startswith("data: ")]
  assert lines[-1] == "[DONE]"
  texts = [json.loads(x)["text"] for x in lines[:-1]]
  assert texts[-1] == single["text"]
  assert all(b.startswith(a) for a, b in zip(texts, texts[1:], strict=False))


def test_many_at_once_say_what_each_says_alone(running, alone):
  """Greedy and seeded, more than there are rows, in two modes."""
  want, got, threads = {}, {}, []
  for i in range(12):
    messages = (ASK, OTHER)[i % 2]
    own = {"temperature": (0.0, 1.1)[i // 2 % 2], "seed": 40 + i % 4}
    out = alone(messages, max_new_tokens=40, **own)
    want[i] = out.text
    mode = ("ar", "linear_spec")[i // 6]

    def run(i=i, messages=messages, own=own, mode=mode):
      chunks = chat(
        running, messages, max_tokens=40, mode=mode, stream=True, **own
      )
      got[i] = "".join(c.choices[0].delta.content or "" for c in chunks)

    threads.append(threading.Thread(target=run))
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert got == want


@pytest.mark.parametrize("protocol", ["openai", "sglang"])
def test_a_client_that_goes_away_leaves_nothing(running, protocol):
  *_, url, service = running
  path, body = {
    "openai": ("/v1/completions", {"prompt": "one two", "max_tokens": 1500}),
    "sglang": ("/generate", {
      "text": "one two", "sampling_params": {"max_new_tokens": 1500},
    }),
  }[protocol]  # fmt: skip
  body |= {"stream": True}
  if protocol == "openai":
    body["ignore_eos"] = True
  else:
    body["sampling_params"]["ignore_eos"] = True
  with http.stream("POST", url + path, json=body, timeout=60) as got:
    lines = got.iter_lines()  # Without a name it would be closed.
    next(lines)
    assert statistics(url)["running"] == 1
  servers.wait_for(lambda: statistics(url)["running"] == 0)
  assert service.engine.running == 0
  assert statistics(url)["pages_used"] == 0
  assert http.post(f"{url}/flush_cache").status_code == 200


def statistics(url):
  found = http.get(f"{url}/server_info").json()
  return found["internal_states"][0]


def test_names_figures_and_health(running):
  model, client, url, _ = running
  assert client.models.list().data[0].id == "embedded"
  tokens = http.post(f"{url}/tokenize", json={"prompt": "one two"}).json()
  assert tokens["tokens"] == model.tokenizer.encode("one two")
  assert http.get(f"{url}/health_generate", timeout=60).status_code == 200
  before = figure(url, "vllm:generation_tokens_total")
  said = chat(running).usage.completion_tokens
  assert figure(url, "vllm:generation_tokens_total") == before + said
  assert figure(url, "vllm:num_requests_running") == 0


def test_acceptance_and_reuse_are_among_the_figures(running):
  """Those of the answers' own usage, added up."""
  *_, url, _ = running
  drafts = "vllm:spec_decode_num_"
  names = [
    drafts + "accepted_tokens_total", drafts + "accepted_tokens_per_pos_total",
    drafts + "drafts_total", "vllm:prefix_cache_hits_total",
  ]  # fmt: skip
  long = [{"role": "user", "content": "What is 1 + 2? " * 40}]
  chat(running, long, max_tokens=2)
  before = [figure(url, n) for n in names]
  used = [chat(running).usage, chat(running, long, max_tokens=2).usage]
  grown = [figure(url, n) - b for n, b in zip(names, before, strict=True)]
  accepted = sum(u.accepted_draft_tokens for u in used)
  assert grown[:2] == [accepted, accepted] and accepted > 10
  assert 0 < grown[2] < sum(u.nfe for u in used)
  reused = [u.prompt_tokens_details.cached_tokens for u in used]
  assert grown[3] == sum(reused) and reused[1] >= 128
  assert statistics(url)["avg_spec_accept_length"] > 1


def figure(url, name):
  """Of all labels together."""
  lines = http.get(f"{url}/metrics").text.splitlines()
  return sum(
    float(line.split()[-1]) for line in lines if line.startswith(name + "{")
  )
