"""Lines of OpenAI's batch files, against the published form of the answers.

The form is that of https://platform.openai.com/docs/api-reference/batch: the
tables below were read there, and from the types of the package openai 3.57.
"""

import importlib
import json
import sys
import time

import pytest

from nemodiff_jax.errors import UserError
from tests.cli.conftest import read, write

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TEXT, WHOLE, NONE = str, int, type(None)
# Fields that must be there, and their types; no others are, but for those.
LINE = {"id": TEXT, "custom_id": TEXT, "response": dict, "error": NONE}
RESPONSE = {"status_code": WHOLE, "request_id": TEXT, "body": dict}
BODY = {
  "id": TEXT, "object": TEXT, "created": WHOLE, "model": TEXT, "choices": list,
  "usage": dict,
}  # fmt: skip
# Behind OpenAI's own fields, what the server adds (docs/serving.md).
USAGE = {
  "prompt_tokens": WHOLE, "completion_tokens": WHOLE, "total_tokens": WHOLE,
  "prompt_tokens_details": dict, "nfe": WHOLE, "tokens_per_forward": float,
  "accepted_draft_tokens": WHOLE, "seed": WHOLE,
}  # fmt: skip
CHOICE = {
  "index": WHOLE, "finish_reason": TEXT, "logprobs": NONE,
  "stop_reason": (TEXT, WHOLE, NONE),
}  # fmt: skip
MESSAGE = {"role": TEXT, "content": TEXT, "refusal": NONE}
ERROR = {"message": TEXT, "type": TEXT, "param": (TEXT, NONE), "code": WHOLE}
HELLO = [{"role": "user", "content": "w20 w21"}]


def has_form(given, form):
  assert set(given) == set(form)
  for name, kind in form.items():
    kinds = kind if isinstance(kind, tuple) else (kind,)
    assert type(given[name]) in kinds, (name, given[name])
  return given


def check(line):
  """The body of an answer, whose form is the published one."""
  response = has_form(has_form(line, LINE)["response"], RESPONSE)
  body = response["body"]
  if response["status_code"] != 200:
    assert list(body) == ["error"]
    return has_form(body["error"], ERROR)
  usage = has_form(has_form(body, BODY)["usage"], USAGE)
  assert usage["total_tokens"] == (
    usage["prompt_tokens"] + usage["completion_tokens"]
  )
  (choice,) = body["choices"]
  if body["object"] == "chat.completion":
    message = has_form(choice, CHOICE | {"message": dict})["message"]
    assert has_form(message, MESSAGE)["role"] == "assistant"
  else:
    assert body["object"] == "text_completion"
    has_form(choice, CHOICE | {"text": TEXT})
  assert choice["index"] == 0 and choice["finish_reason"] in ("stop", "length")
  assert abs(body["created"] - time.time()) < 3600
  return body


def request(name, body, url=CHAT):
  return {"custom_id": name, "method": "POST", "url": url, "body": body}


@pytest.fixture
def answers(run, chatty, tmp_path):
  """Runs a job over lines; returns the exit code and the lines answered."""

  def call(lines, *flags):
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write(path, lines)
    code, *_ = run(
      f"--prompts_file={path}", f"--output={out}", "--max_new_tokens=6", *flags
    )
    return code, read(out)

  return call


SETTINGS = {"temperature": 0.8, "top_p": 0.9, "seed": 5}


def test_answers_are_those_of_our_own_lines(answers):
  own = [
    {"messages": HELLO},
    {"messages": HELLO, "max_new_tokens": 3, **SETTINGS},
    {"prompt": "w9 w8"},
    {"prompt_ids": [9, 8], "max_new_tokens": 2},
  ]
  batch = [
    request("a", {"model": "gpt-x", "messages": HELLO}),
    request("b", {"messages": HELLO, "max_completion_tokens": 3, **SETTINGS}),
    request("c", {"model": "m", "prompt": ["w9 w8"]}, COMPLETIONS),
    request("d", {"prompt": [9, 8], "max_tokens": 2}, COMPLETIONS),
  ]
  code, found = answers([*own, *batch], "--keep_order")
  assert code == 0
  ours, theirs = found[:4], found[4:]
  bodies = [check(x) for x in theirs]
  assert [x["custom_id"] for x in theirs] == ["a", "b", "c", "d"]
  for line, body in zip(ours, bodies, strict=True):
    (choice,) = body["choices"]
    said = (
      choice["message"]["content"] if "message" in choice else choice["text"]
    )
    assert said == line["text"]
    assert choice["finish_reason"] == line["finish_reason"]
    assert body["usage"]["prompt_tokens"] == line["prompt_tokens"]
    assert body["usage"]["completion_tokens"] == line["completion_tokens"]
  assert [b["model"] for b in bodies[:3:2]] == ["gpt-x", "m"]
  assert bodies[1]["usage"]["completion_tokens"] == 3  # Not the flag's 6.
  ids = [x["id"] for x in theirs] + [b["id"] for b in bodies]
  assert len(set(ids)) == len(ids)
  assert [i[:10] for i in ids[:4]] == ["batch_req_"] * 4


@pytest.mark.slow
def test_fields_of_the_server_are_served(answers):
  """Every one of them, against the server: tests/serve/test_batch_lines.py."""
  own = [{"prompt": "w9 w8", "temperature": 0.8, "seed": 5 + i} for i in (0, 1)]
  more = {"n": 2, "logprobs": 1, "temperature": 0.8, "seed": 5}
  batch = [
    request("a", {"prompt": "w9 w8"} | more, COMPLETIONS),
    request("b", {"messages": HELLO, "guided_choice": ["w30"]}),
  ]
  code, found = answers([batch[0], *own, batch[1]], "--keep_order")
  assert code == 0
  assert [x.get("custom_id", x.get("id")) for x in found] == ["a", 2, 3, "b"]
  both, form = (found[i]["response"]["body"]["choices"] for i in (0, 3))
  assert [c["text"] for c in both] == [x["text"] for x in found[1:3]]
  assert len(both[0]["logprobs"]["token_logprobs"]) == 6
  assert form[0]["message"]["content"] == "w30"


def test_what_fails_in_its_turn_is_an_error_line(answers, monkeypatch):
  """As an engine refuses what it has no room for; the others are served."""
  from nemodiff_jax.serve.lanes import Lanes

  submit = Lanes.submit

  def refuse(lanes, job):
    if job.row.seed == 6:  # The second choice: the first one is taken back.
      raise UserError("no room for it.")
    return submit(lanes, job)

  monkeypatch.setattr(Lanes, "submit", refuse)
  bad = {"prompt": "w9 w8", "n": 2, "seed": 5}
  code, found = answers(
    [request("a", bad, COMPLETIONS), request("b", {"messages": HELLO})],
    "--keep_order",
  )
  assert code == 3 and check(found[0])["message"] == "no room for it."
  assert check(found[1])["usage"]["completion_tokens"] == 6


def test_a_job_without_the_extra_says_what_to_install(answers, monkeypatch):
  """Lines of our own need no extra."""
  monkeypatch.setitem(sys.modules, "nemodiff_jax.serve.openai.requests", None)
  code, found = answers([{"prompt": "w9"}, request("a", {"messages": HELLO})])
  assert code == 3 and found[0]["completion_tokens"] == 6
  error = found[1]["response"]["body"]["error"]
  assert "pip install 'nemodiff-jax[serve]'" in error["message"]


def test_a_thinking_budget_and_its_token_come_of_the_flags(answers):
  """And a line's own budget needs a tokenizer that knows the token."""
  flags = ["--max_thinking_tokens=2", "--end_think_token_id=40", "--seed=1"]
  own = {"prompt": "w9 w8", "temperature": 1.0}
  body = own | {"max_tokens": 6, "thinking_token_budget": 3}
  lines = [own, request("a", own, COMPLETIONS), request("b", body, COMPLETIONS)]
  code, (ours, theirs, bad) = answers(lines, *flags)
  assert code == 3 and "w40" in ours["text"]
  assert check(theirs)["choices"][0]["text"] == ours["text"]
  assert check(bad)["param"] == "thinking_token_budget"


def test_what_is_absent_or_null_is_the_jobs(answers):
  """A prompt is no message, whatever --chat says; nulls are clients' noise."""
  body = {"prompt": "w9 w8", "max_tokens": None, "tools": None, "seed": None}
  lines = [
    {"prompt_ids": [1, 9, 8]},
    {"custom_id": "c", "body": body},  # Neither method nor url.
  ]
  code, (own, found) = answers(
    lines, "--temperature=0.9", "--seed=4", "--chat", "--logprobs=2"
  )
  assert code == 0 and own["completion_tokens"] == 6
  assert check(found)["choices"][0]["text"] == own["text"]


def test_stop_ends_the_text(answers):
  body = {"messages": HELLO, "temperature": 1.0, "seed": 3}
  _, (whole,) = answers([request("a", body)])
  said = check(whole)["choices"][0]["message"]["content"].split()
  stop = next(w for w in said if w != said[0])
  _, found = answers([request("b", body | {"stop": [stop]})])
  (choice,) = check(found[1])["choices"]
  assert choice["finish_reason"] == "stop"
  assert choice["message"]["content"].split() == said[: said.index(stop)]


BAD = [
  ({"messages": HELLO, "n": 0}, CHAT, "n", "greater than or equal to 1"),
  ({"messages": HELLO, "tools": []}, CHAT, "tools", "tools"),
  ({"messages": HELLO, "stream": True}, CHAT, "stream", "answers are whole"),
  ({"messages": HELLO, "prompt": "x"}, CHAT, "prompt", "'prompt' is not a field"),
  ({"prompt": "w7", "max_completion_tokens": 2}, COMPLETIONS, "max_completion_tokens", "not a field"),
  ({"messages": HELLO, "max_tokens": 3, "max_completion_tokens": 4}, CHAT, "max_completion_tokens", "equal"),
  ({"messages": HELLO, "max_tokens": 0}, CHAT, "max_tokens", "at least 1, got 0"),
  ({"messages": HELLO, "max_tokens": 9000}, CHAT, "max_tokens", "maximum context length is 512"),
  ({"messages": HELLO, "temperature": -1}, CHAT, "temperature", "greater than or equal to 0"),
  ({"messages": HELLO, "model": 3}, CHAT, "model", "valid string"),
  ({"messages": HELLO, "mode": "ar", "threshold": 0.5}, CHAT, "threshold", "for diffusion"),
  ({"messages": HELLO, "block_length": 5}, CHAT, "block_length", "should be one of"),
  ({"messages": HELLO, "guided_regex": "(", "mode": "ar"}, CHAT, "guided_regex", "cannot be followed"),
  ({"messages": HELLO, "mode": "diffusion", "guided_choice": ["w7"]}, CHAT, "guided_choice", "diffusion"),
  ({"messages": HELLO, "chat_template": "x"}, CHAT, "chat_template", "not taken"),
  ({"messages": HELLO, "logit_bias": {"700": 1}}, CHAT, "logit_bias", "should lie in"),
  ({"model": "m"}, CHAT, "messages", "Field required"),
  ({"messages": HELLO}, "/v1/embeddings", None, "url should be"),
  ({"prompt": [[7]], "stop": 3}, COMPLETIONS, "stop", "stop"),
  ({"model": "m"}, COMPLETIONS, "prompt", "Field required"),
  ([], CHAT, None, "body should be an object"),
  (None, CHAT, None, "body should be an object, got None"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "url", "param", "message"), BAD)
def test_what_is_not_served_is_answered_with_400(
  answers, body, url, param, message
):
  """In the words of the server, which names the field."""
  good = request("good", {"messages": HELLO})
  code, (bad, served) = answers([request("bad", body, url), good])
  assert code == 3
  error = check(bad)
  assert bad["custom_id"] == "bad" and bad["response"]["status_code"] == 400
  assert (error["type"], error["code"]) == ("BadRequestError", 400)
  assert error["param"] == param
  assert message in error["message"]
  assert served["response"]["status_code"] == 200


def test_lines_that_have_no_name_or_another_method(answers):
  lines = [
    {"custom_id": 7, "body": {"messages": HELLO}},
    {"body": {"messages": HELLO}},
    request("a", {"messages": HELLO}) | {"method": "GET"},
    request("b", {"messages": HELLO}) | {"priority": 1},
    request("b", {"messages": HELLO}),
  ]
  code, found = answers(lines)
  assert code == 3
  errors = [x["response"]["body"]["error"] for x in found]
  wanted = [
    "custom_id should be a text, got 7", "custom_id should be a text, got None",
    "method should be POST, got 'GET'", "'priority' is not served",
    "id 'b' is that of line 4 already",
  ]  # fmt: skip
  for error, message in zip(errors, wanted, strict=True):
    assert message in error["message"]


def test_a_batch_goes_on_where_it_stopped(answers, tmp_path):
  lines = [
    request("a", {"messages": HELLO}),
    request("bad", {"messages": []}),
    request("b", {"prompt": "w9"}, COMPLETIONS),
  ]
  first = answers(lines)
  out = tmp_path / "out.jsonl"
  whole = out.read_bytes()
  assert answers(lines) == first and out.read_bytes() == whole
  assert first[0] == 3
  out.write_bytes(whole[:-30])
  code, found = answers(lines)
  assert code == 3 and found[:2] == first[1][:2]
  assert check(found[2])["choices"] == check(first[1][2])["choices"]


def test_the_package_openai_reads_the_answers(answers):
  """The outside judge, where it is installed; the tables say the same."""
  try:
    types = importlib.import_module("openai.types")
    chat = importlib.import_module("openai.types.chat")
  except ImportError:
    pytest.skip("openai is not installed")
  _, found = answers(
    [
      request("a", {"messages": HELLO}),
      request("c", {"prompt": "w9 w8"}, COMPLETIONS),
    ],
    "--keep_order",
  )
  bodies = [json.loads(json.dumps(x["response"]["body"])) for x in found]
  said = chat.ChatCompletion.model_validate(bodies[0], strict=True)
  assert said.choices[0].message.content
  text = types.Completion.model_validate(bodies[1], strict=True)
  assert text.usage.total_tokens == 9
