"""Lines of batch files say what the server says of the same body.

The server is the outside: it answers over HTTP, while the lines are answered by
an engine of their own. What may differ is an answer's name, and its time.
"""

import json

import pytest

pytest.importorskip("fastapi", reason="needs the extra [serve]")
pytest.importorskip("llguidance", reason="needs the extra [serve]")
http = pytest.importorskip("httpx2", reason="needs the extra [dev]")

from nemodiff_jax.cli.openai_calls import Calls
from nemodiff_jax.cli.openai_lines import CHAT, COMPLETIONS, Request
from nemodiff_jax.decode.config import RowSettings, decode_config

ASK = [{"role": "user", "content": "Yes or no?"}]
ADD = {
  "type": "function",
  "function": {
    "name": "add",
    "parameters": {
      "type": "object",
      "properties": {"a": {"enum": [1, 20]}, "b": {"enum": ["x", "y"]}},
      "required": ["a", "b"],
      "additionalProperties": False,
    },
  },
}
POINT = {
  "type": "object",
  "properties": {"x": {"enum": [1, 2]}, "y": {"enum": ["a", "b"]}},
  "required": ["x", "y"],
  "additionalProperties": False,
}
# What a flag sets where the body does not: the same is said to the server.
ROW = RowSettings(max_new_tokens=12, temperature=0.8, top_p=0.9, seed=11)
FLAGS = {"max_tokens": 12, "temperature": 0.8, "top_p": 0.9, "seed": 11}
CHATS = {
  "nothing": {},
  "n": {"n": 3, "seed": 4},
  "logprobs": {"logprobs": True, "top_logprobs": 2},
  "stop": {"stop": ["e", "a"], "include_stop_str_in_output": True},
  "ids": {"return_token_ids": True, "stop_token_ids": [101], "ignore_eos": True},
  "tool": {
    "tools": [ADD], "max_tokens": 80,
    "tool_choice": {"type": "function", "function": {"name": "add"}},
  },
  "schema": {
    "response_format": {
      "type": "json_schema",
      "json_schema": {"name": "point", "schema": POINT},
    },
    "max_tokens": 60,
  },
  "choice": {"guided_choice": ["yes", "no"]},
  "regex": {"structured_outputs": {"regex": "[ab]{3}c"}},
  "penalties": {
    "presence_penalty": 1.0, "frequency_penalty": 0.5,
    "repetition_penalty": 1.3, "logit_bias": {"101": 3, "32": -5},
    "bad_words": ["ab"], "min_tokens": 5,
  },
  "prediction": {"prediction": {"type": "content", "content": "aaaa"}},
  "mode": {"mode": "ar", "temperature": 0},
  "block": {"block_length": 8},
  "thinking": {
    "chat_template_kwargs": {"enable_thinking": True},
    "thinking_token_budget": 4, "guided_choice": ["yes", "no"],
  },
  "continued": {
    "messages": [*ASK, {"role": "assistant", "content": "Ye"}],
    "continue_final_message": True, "add_generation_prompt": False,
    "echo": True,
  },
}  # fmt: skip
TEXTS = {
  "many prompts": {"prompt": ["ab", "cd"], "n": 2},
  "echo": {"prompt": "abc", "echo": True, "logprobs": 1, "max_tokens": 0},
  "prompt logprobs": {"prompt": [97, 98], "prompt_logprobs": 1},
}
LINES = [
  *((name, CHAT, {"messages": ASK} | more) for name, more in CHATS.items()),
  *((name, COMPLETIONS, more) for name, more in TEXTS.items()),
]
LANES = [
  ("block", COMPLETIONS, {"prompt": "ab", "block_length": 8}),
  ("diffusion", COMPLETIONS, {
    "prompt": "ab", "mode": "diffusion", "threshold": 0.5,
  }),
]  # fmt: skip


def same(body):
  """An answer without its name, its time, and the names of its calls."""
  kept = json.loads(json.dumps(body))
  del kept["id"], kept["created"]
  for choice in kept["choices"]:
    for call in choice.get("message", {}).get("tool_calls", ()):
      del call["id"]
  del kept["usage"]["prompt_tokens_details"]  # What was cached, if anything.
  return kept


def answers(bytes_server, lines):
  """By name, what becomes of lines that are answered together."""
  model, *_ = bytes_server
  config = decode_config(model.config, "linear_spec")
  calls = Calls(model, config, ROW, 600, name="bytes")
  asked = [Request(f"r{i}", u, b) for i, (_, u, b) in enumerate(lines)]
  for request in asked:
    calls.read(request)
  lanes = calls.lanes(model, 2, 600)
  found = dict(calls.answers(lanes, asked, 2, lead=3))
  return {name: found[i] for i, (name, *_) in enumerate(lines)}


@pytest.fixture(scope="module")
def answered(bytes_server):
  return answers(bytes_server, LINES)


@pytest.mark.parametrize(("name", "url", "body"), LINES)
def test_a_line_says_what_the_server_says(
  bytes_server, answered, name, url, body
):
  _, address, _ = bytes_server
  sent = FLAGS | body
  got = http.post(address + url, json=sent, timeout=300)
  assert got.status_code == 200, got.text
  assert same(answered[name]) == same(got.json())


def test_what_the_fields_ask_for_is_there(answered):
  """That both are empty would be equal as well."""
  first = lambda name: answered[name]["choices"][0]
  assert [c["index"] for c in answered["n"]["choices"]] == [0, 1, 2]
  assert len({c["message"]["content"] for c in answered["n"]["choices"]}) > 1
  assert len(first("logprobs")["logprobs"]["content"]) == 12
  (call,) = first("tool")["message"]["tool_calls"]
  assert json.loads(call["function"]["arguments"])["b"] in ("x", "y")
  assert json.loads(first("schema")["message"]["content"])["x"] in (1, 2)
  assert first("choice")["message"]["content"] in ("yes", "no")
  assert first("thinking")["message"]["reasoning"]
  assert first("continued")["message"]["content"].startswith("Ye")
  assert len(answered["many prompts"]["choices"]) == 4
  assert answered["nothing"]["id"] == "chatcmpl-r0"


@pytest.mark.slow  # Lanes of their own: more programs.
@pytest.mark.parametrize("line", LANES)
def test_a_line_of_another_lane_says_what_the_server_says(bytes_server, line):
  name, url, body = line
  got = http.post(bytes_server[1] + url, json=FLAGS | body, timeout=300)
  assert same(answers(bytes_server, [line])[name]) == same(got.json())
