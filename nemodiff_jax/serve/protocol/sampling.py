"""Fields that chat completions and completions have in common.

Every field is honoured, or refused by name where it is read (`requests.py`);
those that cannot change an answer are the last ones here.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from nemodiff_jax.decode.config import MAX_LOGPROBS
from nemodiff_jax.serve.protocol.wire import (
  MAX_LIST,
  MAX_N,
  MAX_STOP_CHARS,
  MAX_STOPS,
  SEED,
  Wire,
)

Whole = Annotated[int, Field(ge=0, lt=2**31)]
Ids = Annotated[list[Whole], Field(max_length=MAX_LIST)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]


class StreamOptions(Wire):
  """What a stream holds beside its text."""

  include_usage: bool = False
  continuous_usage_stats: bool = False
  include_passes: bool = False
  include_obfuscation: bool = False  # No answer differs by it.


class StructuredOutputs(Wire):
  """vLLM's names of what an output has to match; one of them."""

  json_: Any = Field(None, alias="json")
  regex: str | None = None
  choice: Annotated[list[str], Field(max_length=MAX_LIST)] | None = None
  grammar: str | None = None
  json_object: bool | None = None


class Sampling(Wire):
  """The fields themselves, by OpenAI's and vLLM's names, then our own."""

  model: str | None = None
  n: Annotated[int, Field(ge=1, le=MAX_N)] = 1
  max_tokens: Whole | None = None
  temperature: Annotated[float, Field(ge=0, le=1000)] = 1.0
  top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
  seed: Annotated[int, Field(ge=-SEED, lt=2 * SEED)] | None = None
  stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
  stream: bool = False
  stream_options: StreamOptions | None = None
  presence_penalty: Penalty = 0.0
  frequency_penalty: Penalty = 0.0
  logit_bias: Annotated[dict[str, Bias], Field(max_length=MAX_LIST)] | None = (
    None
  )

  top_k: Annotated[int, Field(ge=-1, lt=2**31)] = 0
  min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
  repetition_penalty: Annotated[float, Field(gt=0, le=2)] = 1.0
  stop_token_ids: Ids = []
  include_stop_str_in_output: bool = False
  ignore_eos: bool = False
  min_tokens: Whole = 0
  allowed_token_ids: Ids | None = None
  bad_words: Annotated[list[Stop], Field(max_length=MAX_LIST)] = []
  prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
  truncate_prompt_tokens: Annotated[int, Field(ge=1)] | None = None
  echo: bool = False
  add_special_tokens: bool | None = None
  skip_special_tokens: Literal[True] = True
  return_tokens_as_token_ids: bool = False
  return_token_ids: bool = False
  priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
  cache_salt: Annotated[str, Field(max_length=1000)] = ""
  request_id: Annotated[str, Field(max_length=200)] | None = None
  thinking_token_budget: Whole | None = None
  response_format: dict[str, Any] | None = None
  structured_outputs: StructuredOutputs | None = None
  guided_json: Any = None
  guided_regex: str | None = None
  guided_choice: Annotated[list[str], Field(max_length=MAX_LIST)] | None = None
  guided_grammar: str | None = None

  mode: Literal["ar", "diffusion", "linear_spec", "quadratic_spec"] | None = (
    None
  )
  block_length: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
  threshold: Annotated[float, Field(gt=0, le=1)] | None = None
  steps_per_block: Annotated[int, Field(ge=1, lt=2**31)] | None = None
  draft_threshold: Annotated[float, Field(ge=0, le=1)] | None = None

  # NVIDIA's names; of those that its own server does not vary, one value.
  max_thinking_tokens: Whole | None = None
  linear_speculation: bool | None = None
  generation_algorithm: Literal["nemotron", "ar_native"] | None = None
  causal_context: Literal[True] = True
  shift_logits: Literal[False] = False
  remasking: Literal["low_confidence"] = "low_confidence"
  draft_lora_only: Literal[True] = True

  # No answer differs by these.
  user: Any = None
  metadata: Any = None
  store: Any = None
  service_tier: Any = None
  safety_identifier: Any = None
  prompt_cache_key: Any = None
  prompt_cache_retention: Any = None
  session_id: Any = None
  stream_interval: Any = None
  spaces_between_special_tokens: Any = None
  steps: Any = None
  sampler: Any = None
  benchmark_name: Any = None
  exclude_unfinished_nfe: Any = None
