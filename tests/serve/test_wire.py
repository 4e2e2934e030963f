"""Every field is honoured or refused by its name; sizes are limited."""

import json

import pytest

pytest.importorskip("pydantic", reason="needs the extra [serve]")

from nemodiff_jax.errors import UserError
from nemodiff_jax.serve.errors import Refusal, as_refusal, openai_error, read
from nemodiff_jax.serve.openai.requests import read_chat, read_completion
from nemodiff_jax.serve.protocol.openai import ChatRequest, CompletionRequest
from nemodiff_jax.serve.protocol.sglang import GenerateRequest
from nemodiff_jax.serve.sglang.requests import read_generate
from tests.serve import fakes, servers

HELLO = {"messages": [{"role": "user", "content": "hi"}]}
TOOL = {"type": "function", "function": {"name": "f"}}
NAN = float("nan")
SERVED = servers.served()


def chat(served=SERVED, **fields):
  return read_chat(served, read(ChatRequest, HELLO | fields))


def completion(served=SERVED, **fields):
  given = {"prompt": "hi"} | fields
  return read_completion(served, read(CompletionRequest, given))


def native(served=SERVED, **fields):
  given = fields if "input_ids" in fields else {"text": "hi"} | fields
  return read_generate(served, read(GenerateRequest, given))[0]


def refusal(make, **fields):
  with pytest.raises(UserError) as error:
    make(**fields)
  return as_refusal(error.value)


# Names and what they may be: the fields of vLLM 0.33's chat request
# (protocol.py), of OpenAI's reference, and of NVIDIA's evaluation client, as
# serving.md 1.7 and 2.1 list them. Each changes the row, or nothing.
HONOURED = [
  ("temperature", 0.5, lambda j: j.row.temperature == 0.5),
  ("top_p", 0.5, lambda j: j.row.top_p == 0.5),
  ("top_k", 5, lambda j: j.row.top_k == 5),
  ("top_k", -1, lambda j: j.row.top_k == 0),
  ("min_p", 0.5, lambda j: j.row.min_p == 0.5),
  ("seed", 5, lambda j: j.row.seed == 5),
  ("seed", -1, lambda j: j.row.seed == 2**64 - 1),
  ("max_tokens", 5, lambda j: j.row.max_new_tokens == 5),
  ("stop", "x", lambda j: j.row.stop == ("x",)),
  ("stop", ["x", "</s>"], lambda j: j.row.stop_token_ids == (fakes.EOS,)),
  ("stop_token_ids", [7], lambda j: j.row.stop_token_ids == (7,)),
  ("ignore_eos", True, lambda j: j.row.ignore_eos),
  ("min_tokens", 3, lambda j: j.adjust.min_tokens == 3),
  ("logit_bias", {"7": -100}, lambda j: j.adjust.logit_bias == {7: -100}),
  ("presence_penalty", 1, lambda j: j.adjust.presence_penalty == 1),
  ("frequency_penalty", -2, lambda j: j.adjust.frequency_penalty == -2),
  ("repetition_penalty", 1.5, lambda j: j.adjust.repetition_penalty == 1.5),
  ("allowed_token_ids", [7], lambda j: j.adjust.allowed_token_ids == [7]),
  ("bad_words", ["ab"], lambda j: [97, 98] in j.adjust.bad_words),
  ("bad_words", ["ab"], lambda j: [32, 97, 98] in j.adjust.bad_words),
  ("truncate_prompt_tokens", 2, lambda j: len(j.prompt) == 2),
  ("priority", -3, lambda j: j.priority == -3),
  ("cache_salt", "a", lambda j: j.cache_salt == "a"),
  ("thinking_token_budget", 9, lambda j: j.row.max_thinking_tokens == 9),
  ("max_thinking_tokens", 9, lambda j: j.row.max_thinking_tokens == 9),
  ("mode", "ar", lambda j: j.mode == "ar"),
  ("block_length", 16, lambda j: j.block_length == 16),
  ("block_length", "auto", lambda j: j.block_length == "auto"),
  ("draft_threshold", 0.5, lambda j: j.draft_threshold == 0.5),
  ("linear_speculation", True, lambda j: j.mode == "linear_spec"),
  ("generation_algorithm", "ar_native", lambda j: j.mode == "ar"),
  ("generation_algorithm", "nemotron", lambda j: j.mode == "diffusion"),
  ("guided_regex", "a+", lambda j: not j.grammar.may_end()),
  ("guided_choice", ["", "b"], lambda j: j.grammar.may_end()),
  ("guided_grammar", 'start: "ab"', lambda j: j.grammar.forced() == [97, 98]),
  ("guided_json", {"const": 1}, lambda j: j.grammar.forced() == [49]),
  ("guided_json", '{"const": 1}', lambda j: j.grammar.forced() == [49]),
  ("response_format", {"type": "text"}, lambda j: j.grammar is None),
  ("response_format", {"type": "json_object"}, lambda j: j.grammar.forced()),
  ("structured_outputs", {"json": {"const": 1}}, lambda j: j.grammar.forced()),
  ("structured_outputs", {"regex": "ab"}, lambda j: j.grammar.forced()),
]  # fmt: skip
IGNORED = (
  "user metadata store service_tier safety_identifier prompt_cache_key"
  " session_id stream_interval spaces_between_special_tokens steps sampler"
  " benchmark_name exclude_unfinished_nfe"
).split()


@pytest.mark.parametrize("make", [chat, completion])
@pytest.mark.parametrize(("name", "value", "holds"), HONOURED)
def test_a_field_reaches_the_row(make, name, value, holds):
  if make is completion and name == "truncate_prompt_tokens":
    value = 2
  assert holds(make(**{name: value}).jobs[0])


@pytest.mark.parametrize("name", IGNORED)
def test_what_changes_no_answer_is_taken(name):
  plain, given = chat(seed=1), chat(seed=1, **{name: "anything"})
  assert plain.jobs == given.jobs


def test_the_defaults_are_the_protocols():
  job = chat().jobs[0]
  assert (job.row.temperature, job.row.top_p, job.row.top_k) == (1, 1, 0)
  assert job.row.max_new_tokens == 2000 - len(job.prompt)
  assert completion().jobs[0].row.max_new_tokens == 16
  assert native()[0].job.row.max_new_tokens == 128
  assert native()[0].job.row.temperature == 1


def test_null_is_absent():
  given = dict.fromkeys(ChatRequest.model_fields) | HELLO | {"zzz": None}
  assert chat(**given | {"seed": 2}).jobs == chat(seed=2).jobs


def test_choices_are_seeded_one_after_the_other():
  seeds = [j.row.seed for j in completion(prompt=["a", "b"], n=2, seed=9).jobs]
  assert seeds == [9, 10, 9, 10]


BAD = [
  ({"foo": 1}, "foo", "not a field"),
  ({"messages": []}, "messages", "at least 1"),
  ({"messages": [{"role": "robot", "content": ""}]}, "messages", "role should"),
  ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
   "messages", "parts of type text"),
  ({"n": 0}, "n", "greater than or equal to 1"),
  ({"n": 65}, "n", "less than or equal to 64"),
  ({"max_tokens": 0}, "max_tokens", "at least 1"),
  ({"max_tokens": 1999}, "max_tokens", "maximum context length is 2000"),
  ({"max_tokens": 2, "max_completion_tokens": 3}, "max_completion_tokens",
   "equal"),
  ({"temperature": NAN}, "temperature", "finite"),
  ({"temperature": -1}, "temperature", "greater than or equal to 0"),
  ({"temperature": "1"}, "temperature", "valid number"),
  ({"seed": True}, "seed", "valid integer"),
  ({"top_p": 0}, "top_p", "greater than 0"),
  ({"stop": "x" * 10_000}, "stop", "at most 1000"),
  ({"stop": ["x"] * 17}, "stop", "valid string"),
  ({"stop": ""}, "stop", "at least 1"),
  ({"logit_bias": {"a": 1}}, "logit_bias", "token ids as keys"),
  ({"logit_bias": {"272": 1}}, "logit_bias", r"\[0, 272\)"),
  ({"logit_bias": {"1": 101}}, "logit_bias", "100"),
  ({"allowed_token_ids": [272]}, "allowed_token_ids", r"\[0, 272\)"),
  ({"allowed_token_ids": []}, "allowed_token_ids", "hold an id"),
  ({"stop_token_ids": [300]}, "stop_token_ids", r"\[0, 272\)"),
  ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
  ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
  ({"stream_options": {}}, "stream_options", "needs stream"),
  ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "stream"),
  ({"tools": []}, "tools", "hold a tool"),
  ({"tools": [TOOL, TOOL]}, "tools", "names of their own"),
  ({"tools": [{"type": "browser"}]}, "tools", "function"),
  ({"tool_choice": "auto"}, "tool_choice", "needs tools"),
  ({"tools": [TOOL], "tool_choice": {"type": "function", "function":
    {"name": "g"}}}, "tool_choice", "not in tools"),
  ({"response_format": {"type": "xml"}}, "response_format", "text, json_obj"),
  ({"response_format": {"type": "json_schema"}}, "response_format", "schema"),
  ({"response_format": {"type": "json_object"}, "guided_regex": "a"},
   "guided_regex", "one form only"),
  ({"structured_outputs": {"regex": "a", "choice": ["b"]}},
   "structured_outputs", "one form only"),
  ({"structured_outputs": {"xml": 1}}, "structured_outputs", "'xml'"),
  ({"guided_choice": []}, "guided_choice", "hold a text"),
  ({"guided_regex": "(a"}, "guided_regex", "unclosed group"),
  ({"guided_regex": "a" * 65537}, "guided_regex", "at most 65536"),
  ({"guided_json": {"not": {}}}, "guided_json", "not"),
  ({"guided_json": "{"}, "guided_json", "no JSON"),
  ({"guided_json": 3}, "guided_json", "should be an object"),
  ({"guided_grammar": "start: foo"}, "guided_grammar", "unknown name"),
  ({"mode": "best"}, "mode", "'ar'"),
  ({"mode": "ar", "linear_speculation": True}, "mode", "linear_spec"),
  ({"block_length": 12}, "block_length", "8, 16, 32, auto, got 12"),
  ({"block_length": "auto", "mode": "diffusion"}, "block_length", "16, got"),
  ({"threshold": 0.5}, "threshold", "for diffusion"),
  ({"draft_threshold": 0.5, "mode": "ar"}, "draft_threshold", "linear_spec"),
  ({"mode": "diffusion", "guided_regex": "a"}, "guided_regex", "any order"),
  ({"mode": "diffusion", "presence_penalty": 1}, "presence_penalty", "order"),
  ({"skip_special_tokens": False}, "skip_special_tokens", "True"),
  ({"add_special_tokens": True}, "add_special_tokens", "template"),
  ({"add_generation_prompt": True, "continue_final_message": True},
   "continue_final_message", "exclude"),
  ({"add_generation_prompt": False, "continue_final_message": True},
   "continue_final_message", "last message of the assistant"),
  ({"echo": True}, "echo", "continue_final_message"),
  ({"chat_template": "{{ 1 }}"}, "chat_template", "--allow_request_templates"),
  ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs",
   "'messages'"),
  ({"prediction": {"type": "content", "content": "x"}, "n": 2}, "prediction",
   "not for n"),
  ({"modalities": ["audio"]}, "modalities", "text"),
  ({"audio": {"voice": "x"}}, "audio", "not a field"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "text"), BAD)
def test_what_cannot_be_honoured_is_a_400_that_names_it(fields, param, text):
  found = refusal(chat, **fields)
  assert found.status == 400 and found.param == param
  with pytest.raises(Refusal, match=text):
    raise found


def test_reasoning_effort_needs_a_template_that_reads_it():
  effort = chat(reasoning_effort="high")
  assert effort.thinking is True and effort.jobs[0].prompt[-1] == fakes.THINK
  assert chat(reasoning_effort="none").thinking is False
  plain = servers.served(template=servers.ChatTemplate("{{ messages }}", {}))
  found = refusal(lambda **f: chat(plain, **f), reasoning_effort="high")
  assert found.param == "reasoning_effort"


def test_tools_need_a_template_that_writes_calls():
  plain = servers.served(template=servers.ChatTemplate("{{ messages }}", {}))
  assert refusal(lambda **f: chat(plain, **f), tools=[TOOL]).param == "tools"
  forced = chat(plain, tools=[TOOL], tool_choice="required")
  assert forced.calls == "required"


def test_an_engine_without_a_feature_refuses_it_by_name():
  bare = servers.served(features=frozenset())
  for fields, param in (
    ({"logit_bias": {"7": 1}}, "logit_bias"),
    ({"min_tokens": 1}, "min_tokens"),
    ({"guided_regex": "a"}, "guided_regex"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
  ):
    assert refusal(lambda **f: chat(bare, **f), **fields).param == param


def test_other_names_are_served_unless_names_are_strict():
  assert chat(model="gpt-4o").jobs
  strict = servers.served(strict_model=True)
  found = refusal(lambda **f: chat(strict, **f), model="gpt-4o")
  assert (found.status, found.param) == (404, "model")


def test_large_values_are_not_given_back():
  for fields in ({"seed": "x" * 10**6}, {"x" * 10**6: 1}):
    body = json.dumps(openai_error(refusal(chat, **fields)))
    assert len(body) < 1000


def test_continuing_a_message_ends_the_prompt_in_it():
  messages = [*HELLO["messages"], {"role": "assistant", "content": "So it "}]
  given = {"messages": messages, "continue_final_message": True}
  call = chat(**given, add_generation_prompt=False)
  text = fakes.ByteTokenizer().decode(call.jobs[0].prompt)
  assert text == "[user]hi[assistant]So it "
  assert chat(**given, echo=True).echoes == ["So it "]


def test_a_template_of_the_request_is_taken_where_that_is_allowed():
  open_ = servers.served(request_templates=True)
  call = chat(open_, chat_template="T{{ messages[0].content }}")
  assert bytes(call.jobs[0].prompt) == b"Thi"


NATIVE_BAD = [
  ({"sampling_params": {"top_p": 2}}, "less than or equal to 1"),
  ({"sampling_params": {"structural_tag": "x"}}, "structural_tag"),
  ({"sampling_params": {"skip_special_tokens": False}}, "skip_special_tokens"),
  ({"lora_path": "x"}, "lora_path"),
  ({"image_data": ["x"]}, "image_data"),
  ({"return_hidden_states": True}, "return_hidden_states"),
  ({"sampling_params": [{}, {}]}, "an entry per prompt"),
  ({"logprob_start_len": 9, "return_logprob": True}, "at most 3"),
  ({"input_ids": [1], "text": "a"}, "one of text and input_ids"),
  ({"input_ids": [272]}, r"\[0, 272\)"),
  ({"input_ids": [[1], [2]], "rid": ["a"]}, "a list of 2"),
  ({"sampling_params": {"regex": "a", "json_schema": "{}"}}, "exclude"),
  ({"sampling_params": {"max_new_tokens": 2000}}, "maximum context"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "text"), NATIVE_BAD)
def test_a_known_field_of_sglang_has_the_one_value_served(fields, text):
  with pytest.raises(Refusal, match=text):
    raise refusal(native, **fields)


def test_unknown_keys_of_sglang_are_dropped():
  (row,) = native(zzz=1, sampling_params={"yyy": 2, "sampling_seed": 4})
  assert row.job.row.seed == 4
