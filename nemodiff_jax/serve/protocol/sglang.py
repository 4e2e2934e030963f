"""Requests of SGLang's native protocol.

A key that SGLang's own types do not know is dropped there without a word, and
so it is here. A field that is known and not served has one value, its default.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from nemodiff_jax.decode.config import MAX_LOGPROBS
from nemodiff_jax.serve.protocol.sampling import Ids, Penalty, Stop, Whole
from nemodiff_jax.serve.protocol.wire import (
  MAX_LIST,
  MAX_N,
  MAX_PROMPTS,
  MAX_STOPS,
  SEED,
  Wire,
)

No = Literal[False]
Prompt = Annotated[list[Whole], Field(fail_fast=True)]
Prompts = Annotated[list[str], Field(max_length=MAX_PROMPTS)]
Start = Annotated[int, Field(ge=-1, lt=2**31)]
Top = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]


class Native(Wire):
  """An object whose other keys are dropped."""

  model_config = ConfigDict(extra="ignore")


class SamplingParams(Native):
  """sampling_params of /generate."""

  max_new_tokens: Whole = 128
  min_new_tokens: Whole = 0
  temperature: Annotated[float, Field(ge=0, le=1000)] = 1.0
  top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
  top_k: Annotated[int, Field(ge=-1, lt=2**31)] = -1
  min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
  frequency_penalty: Penalty = 0.0
  presence_penalty: Penalty = 0.0
  repetition_penalty: Annotated[float, Field(gt=0, le=2)] = 1.0
  stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
  stop_token_ids: Ids = []
  ignore_eos: bool = False
  no_stop_trim: bool = False
  n: Annotated[int, Field(ge=1, le=MAX_N)] = 1
  json_schema: str | None = None
  regex: str | None = None
  ebnf: str | None = None
  logit_bias: Annotated[dict[str, float], Field(max_length=MAX_LIST)] | None = (
    None
  )
  sampling_seed: Annotated[int, Field(ge=-SEED, lt=2 * SEED)] | None = None
  skip_special_tokens: Literal[True] = True

  # Known there, not served here.
  stop_regex: None = None
  structural_tag: None = None
  custom_params: None = None


class GenerateRequest(Native):
  """POST or PUT /generate."""

  text: str | Prompts | None = None
  input_ids: (
    Prompt | Annotated[list[Prompt], Field(max_length=MAX_PROMPTS)] | None
  ) = None
  sampling_params: SamplingParams | list[SamplingParams] = SamplingParams()
  rid: str | list[str] | None = None
  stream: bool = False
  return_logprob: bool | list[bool] = False
  logprob_start_len: Start | list[Start] = -1
  top_logprobs_num: Top | list[Top] = 0
  return_text_in_logprobs: bool = False
  return_prompt_token_ids: bool = False
  priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
  max_thinking_tokens: Whole | None = None
  extra_key: str | list[str] | None = None

  # Known there, not served here.
  input_embeds: None = None
  image_data: None = None
  video_data: None = None
  audio_data: None = None
  token_ids_logprob: None = None
  lora_path: None = None
  session_params: None = None
  custom_logit_processor: None = None
  return_hidden_states: No = False


class AbortRequest(Native):
  """POST /abort_request."""

  rid: Annotated[str, Field(max_length=1000)] | None = None
  abort_all: bool = False
