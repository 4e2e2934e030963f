"""SGLang's native protocol, by a client that behaves like RuntimeEndpoint."""

import json

import pytest

pytest.importorskip("fastapi", reason="needs the extra [serve]")
http = pytest.importorskip("httpx2", reason="needs the extra [dev]")

from tests.serve import fakes
from tests.serve.endpoint import Endpoint


def script(job):
  """The prompt's own bytes, then an EOS."""
  return [*(i for i in job.prompt if i < 256), fakes.EOS]


@pytest.fixture(scope="module")
def engine():
  return fakes.FakeEngine(script)


@pytest.fixture(scope="module")
def endpoint(url):
  return Endpoint(url)


def test_an_answer_has_its_text_ids_and_meta_info(endpoint):
  made = endpoint.generate("héllo", temperature=0)
  assert set(made) == {"text", "output_ids", "meta_info"}
  assert made["text"] == "héllo"
  assert made["output_ids"] == [*"héllo".encode(), fakes.EOS]
  meta = made["meta_info"]
  assert meta["finish_reason"] == {"type": "stop", "matched": fakes.EOS}
  assert meta["prompt_tokens"] == meta["completion_tokens"] == 7
  assert meta["cached_tokens"] == 3 and meta["e2e_latency"] >= 0
  short = endpoint.generate("hello", max_new_tokens=2)
  assert short["meta_info"]["finish_reason"] == {"type": "length", "length": 2}
  stopped = endpoint.generate("hello", stop="ll")
  assert stopped["text"] == "he"
  assert stopped["meta_info"]["finish_reason"]["matched"] == "ll"
  kept = endpoint.generate("hello", stop="ll", no_stop_trim=True)
  assert kept["text"] == "hell"


def test_lists_keep_their_order_and_their_own_settings(endpoint):
  made = endpoint.post(
    text=["one", "two", "three"],
    sampling_params=[{"max_new_tokens": n} for n in (3, 2, 1)],
  )
  assert [m["text"] for m in made] == ["one", "tw", "t"]
  ids = endpoint.post(input_ids=[[97, 98], [99]], rid=["x", "y"])
  assert [m["text"] for m in ids] == ["ab", "c"]
  assert [m["meta_info"]["id"] for m in ids] == ["x", "y"]
  two = endpoint.post(text="a", sampling_params={"n": 2, "sampling_seed": 5})
  assert [m["meta_info"]["seed"] for m in two] == [5, 6]


def test_streams_are_cumulative_and_add_up(endpoint):
  pieces = list(endpoint.stream("a longer text ☃", max_new_tokens=50))
  assert "".join(p for p, _ in pieces) == "a longer text ☃"
  reasons = [m["finish_reason"] for _, m in pieces]
  assert reasons[:-1] == [None] * (len(pieces) - 1) and len(pieces) > 3
  assert reasons[-1]["type"] == "stop"


def test_streams_of_lists_tell_their_index(url):
  body = {"text": ["ab", "cde"], "stream": True}
  texts = {}
  with http.stream("POST", f"{url}/generate", json=body) as response:
    for line in response.iter_lines():
      if line.startswith("data: {"):
        made = json.loads(line[6:])
        texts[made["index"]] = made["text"]
  assert texts == {0: "ab", 1: "cde"}


def test_logprobs_have_a_row_per_token(endpoint):
  for start in (0, 2):
    made = endpoint.post(
      text="abc", return_logprob=True, logprob_start_len=start,
      top_logprobs_num=2, return_text_in_logprobs=True,
    )["meta_info"]  # fmt: skip
    assert len(made["input_token_logprobs"]) == made["prompt_tokens"] - start
    assert len(made["input_top_logprobs"]) == made["prompt_tokens"] - start
    assert len(made["output_token_logprobs"]) == made["completion_tokens"]
    assert made["input_token_logprobs"][0][0] is None
    assert made["input_token_logprobs"][-1] == [-0.099, 99, "c"]
    for row, top in zip(
      made["output_token_logprobs"], made["output_top_logprobs"], strict=True
    ):
      assert top[0] == row and len(top) == 2
  plain = endpoint.post(text="ab", return_logprob=True)["meta_info"]
  assert plain["input_token_logprobs"] == []
  assert plain["output_token_logprobs"][0] == [-0.097, 97, None]


def test_select_scores_prompts_without_a_new_token(endpoint):
  """Made-up log-probabilities fall with the byte: 'a' is likelier than 'z'."""
  assert endpoint.select("x ", ["zz", "aa", "mm"]) == "aa"


def test_grammars_by_sglangs_names(endpoint, engine):
  for field, source, forced in (
    ("regex", "ab", b"ab"),
    ("json_schema", '{"const": 12}', b"12"),
    ("ebnf", 'start: "xy"', b"xy"),
  ):
    endpoint.generate("a", **{field: source})
    assert bytes(engine.jobs[-1].grammar.forced()) == forced


def test_what_clients_read_of_a_server(url):
  for name in ("model_info", "get_model_info"):
    assert http.get(f"{url}/{name}").json()["is_generation"] is True
  state = http.get(f"{url}/get_server_info").json()["internal_states"][0]
  assert "avg_spec_accept_length" in state
  for ask in (http.get, http.post):
    assert ask(f"{url}/flush_cache").status_code == 200
  assert http.get(f"{url}/health_generate").status_code == 200
  bad = http.post(f"{url}/generate", json={"text": 3})
  assert bad.status_code == 400 and set(bad.json()) == {"error"}
  assert set(bad.json()["error"]) == {"message"}
