"""No input line ends a job: any JSON, any numbers, any texts, any bytes."""

import json

import pytest
from absl import flags
from absl.testing import flagsaver
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("pydantic", reason="needs the extra [serve]")

import nemodiff_jax as nd
from nemodiff_jax import api, serving
from nemodiff_jax.cli import flags as shared
from nemodiff_jax.cli import jobs, run_job
from nemodiff_jax.decode import results
from nemodiff_jax.decode import rows as decoding
from nemodiff_jax.decode.config import ROW_FIELDS, RowSettings, decode_config
from nemodiff_jax.io.checkpoint import open_checkpoint
from nemodiff_jax.serve.protocol.openai import ChatRequest
from tests.serve import fakes

TEMPLATE = (
  "{% for m in messages %}{% for call in m.tool_calls %}"
  "{{ call.function.arguments | tojson }}{% endfor %}{{ m.role }}"
  " {{ 7 // (m.content | length - 3) }} {{ m.content[0] | upper }}"
  "{% endfor %}{{ range(messages | length * 60000) | length }}"
)
NUMBERS = st.sampled_from(
  [0, -1, 1, 7, 2**31, 2**32, 2**63, 2**64, 10**400, 0.5, -0.0, 1e39, 5e-324]
  + [float("nan"), float("inf"), -float("inf")]
)
TEXTS = st.text() | st.sampled_from(["w7 w8", "\ud83d", "\u2028", "w5", "<s>"])
LEAVES = st.none() | st.booleans() | NUMBERS | st.integers() | TEXTS
ANY = st.recursive(
  LEAVES, lambda x: st.lists(x, max_size=3) | st.dictionaries(TEXTS, x), max_leaves=6
)  # fmt: skip
IDS = st.lists(st.integers(0, 96) | LEAVES, max_size=4)
MESSAGES = st.lists(
  ANY
  | st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "tool", "developer"]) | ANY},
    optional={"content": TEXTS | ANY, "tool_calls": ANY, "name": ANY},
  ),
  max_size=3,
)
PROMPT = st.one_of(
  st.fixed_dictionaries({"prompt": TEXTS | ANY}),
  st.fixed_dictionaries({"prompt_ids": IDS | ANY}),
  st.fixed_dictionaries({"messages": MESSAGES | ANY}),
)
SETTINGS = st.dictionaries(
  st.sampled_from([*ROW_FIELDS, "id", "enable_thinking"]), ANY, max_size=3
)
KNOWN = ["model", "max_tokens", "temperature", "stop", "n", "seed"]
BODY = st.dictionaries(
  st.sampled_from(KNOWN) | st.sampled_from([*ChatRequest.model_fields]),
  ANY,
  max_size=3,
)
OWN = st.builds(lambda a, b: {**a, **b}, PROMPT, SETTINGS)
BATCH = st.fixed_dictionaries(
  {"custom_id": TEXTS | ANY, "body": st.builds(lambda a, b: {**a, **b}, PROMPT, BODY) | ANY},
  optional={"method": st.just("POST") | ANY, "url": st.just("/v1/completions") | ANY},
)  # fmt: skip
LINES = st.one_of(
  st.binary().map(lambda b: b.replace(b"\n", b"")),
  *(
    st.builds(
      lambda value, ascii: json.dumps(value, ensure_ascii=ascii).encode(
        "utf-8", "surrogatepass"
      ),
      values,
      st.booleans(),
    )
    for values in (OWN, OWN, BATCH, ANY)
  ),
)


def refuse(name):
  raise AssertionError(f"{name} is not JSON")


@pytest.fixture
def serve(chatty, tmp_path, monkeypatch):
  """Serves lines by the real path, but for the passes; returns the output."""
  (chatty / "chat_template.jinja").write_text(TEMPLATE)
  opened, model = open_checkpoint(str(chatty)), nd.load(str(chatty))
  config = decode_config(model.config, "ar")

  def decode(model, config, prompts, rows, *_):
    """Every setting becomes an array; every number that can be is NaN."""
    decoding.make_decoder(model.module, config, rows)
    decoding.make_rows(model.config, config, rows)
    nan = results.Logprobs([float("nan")], [[3]], [[float("-inf")]])
    done = results.DecodedIds([9], "length", 1, None, nan, "w9")
    for i, prompt in enumerate(prompts):
      yield i, api.make_output(model.tokenizer, config.mode, len(prompt), done)

  monkeypatch.setattr(api, "rows_as_done", decode)
  monkeypatch.setattr(shared, "load", lambda *_: model)
  engine = lambda *_, **__: fakes.FakeEngine(lambda job: [9])
  monkeypatch.setattr(serving, "open_lanes", engine)
  count = iter(range(10**6))

  def call(lines):
    source = tmp_path / "in.jsonl"
    out = tmp_path / f"out{next(count)}.jsonl"
    source.write_bytes(b"\n".join(lines))
    row = RowSettings(2, end_think_token_id=9)
    reader = jobs.Reader(opened, config, row)
    items = list(reader.read(str(source)))
    code = run_job.run_job(reader, items, 2, str(out), {})
    raw = out.read_bytes()
    assert raw.count(b"\n") == len(raw.decode().splitlines())
    found = [json.loads(x, parse_constant=refuse) for x in raw.splitlines()]
    return code, found

  with flagsaver.flagsaver():
    flags.FLAGS(["generate"])
    yield call


GOOD = b'{"id": "the good one", "prompt_ids": [7, 8]}'


@settings(
  max_examples=150,
  derandomize=True,  # The same lines each time; change the number for more.
  deadline=None,
  suppress_health_check=[
    HealthCheck.function_scoped_fixture,
    HealthCheck.too_slow,
  ],
)
@given(lines=st.lists(LINES, min_size=1, max_size=6))
def test_every_line_gives_a_line_and_the_others_are_served(serve, lines):
  code, found = serve([GOOD, *lines])
  given_lines = [x for x in lines if x.removeprefix(b"\xef\xbb\xbf").strip()]
  assert len(found) == 1 + len(given_lines)
  good = next(x for x in found if x.get("id") == "the good one")
  assert good["token_ids"] == [9]
  failed = [x for x in found if x.get("error") or "token_ids" not in x]
  failed = [
    x for x in failed if x.get("response", {}).get("status_code") != 200
  ]
  assert code == (3 if failed else 0)


CRUEL = [
  {"prompt_ids": [7], "max_thinking_tokens": 2**32},
  {"prompt_ids": [7], "max_thinking_tokens": 2**31, "end_think_token_id": 2**40},
  {"prompt_ids": [7], "logprobs": 2**40},
  {"prompt_ids": [7], "max_new_tokens": 2**40},
  {"prompt_ids": [2**63]},
  {"messages": [{"role": "user", "content": "cut \ud83d"}]},
  {"messages": [{"role": "user", "content": "abc"}]},  # Divides by zero.
  {"messages": [{"role": "user", "content": "x"}] * 3},  # A long range().
  {"messages": [{"role": {"a": 1}, "content": "x"}]},
  {"prompt": "w7", "stop": ["\ud83d"]},
  {"prompt": "w7", "stop_token_ids": [10**30]},
  {"prompt": "w7", "enable_thinking": 1},
  {"prompt": "w7", "top_p": "1" * 10**5},
]  # fmt: skip


@pytest.mark.parametrize("line", CRUEL, ids=lambda x: repr(x)[:50])
def test_cruel_lines_are_refused_alone(serve, line):
  code, (good, bad) = serve([GOOD, json.dumps(line).encode()])
  assert code == 3 and good["token_ids"] == [9]
  assert 0 < len(bad["error"]["message"]) < 600


def test_numbers_that_are_none_are_null(serve):
  _, found = serve([b'{"prompt_ids": [7], "logprobs": 1}'])
  assert found[0]["logprobs"] == {
    "token": [None],
    "top_ids": [[3]],
    "top": [[None]],
  }
