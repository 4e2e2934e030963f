"""Requests of OpenAI's protocol, with what vLLM's clients add.

https://platform.openai.com/docs/api-reference; a name that is not here is
refused, as is a value of another type.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from nemodiff_jax.decode.config import MAX_LOGPROBS
from nemodiff_jax.serve.protocol.sampling import Sampling, Whole
from nemodiff_jax.serve.protocol.wire import MAX_PROMPTS, MAX_TOOLS, Wire

Top = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]
Prompt = Annotated[list[Whole], Field(fail_fast=True)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]


class Function(Wire):
  """A function that the model may call."""

  name: Name
  description: str | None = None
  parameters: dict[str, Any] | None = None
  strict: bool = False


class Tool(Wire):
  """A tool; functions are the only ones."""

  type: Literal["function"]
  function: Function


class Named(Wire):
  """The name of a function."""

  name: Name


class Choose(Wire):
  """The one function that has to be called."""

  type: Literal["function"]
  function: Named


class Part(Wire):
  """A part of a text."""

  type: Literal["text"]
  text: str


class Prediction(Wire):
  """What most of the answer is expected to be (Predicted Outputs)."""

  type: Literal["content"]
  content: str | list[Part]


class Rendering(Wire):
  """How messages become a prompt."""

  messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
  tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
  add_generation_prompt: bool = True
  continue_final_message: bool = False
  documents: list[dict[str, Any]] | None = None
  chat_template: str | None = None
  chat_template_kwargs: dict[str, Any] = {}


class ChatRequest(Rendering, Sampling):
  """POST /v1/chat/completions."""

  max_completion_tokens: Whole | None = None
  logprobs: bool = False
  top_logprobs: Top | None = None
  tool_choice: Literal["none", "auto", "required"] | Choose | None = None
  parallel_tool_calls: bool = True
  reasoning_effort: (
    Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None
  ) = None
  include_reasoning: bool = True
  modalities: list[Literal["text"]] | None = None
  prediction: Prediction | None = None


class CompletionRequest(Sampling):
  """POST /v1/completions."""

  prompt: (
    str
    | Prompt
    | Annotated[list[str], Field(max_length=MAX_PROMPTS)]
    | Annotated[list[Prompt], Field(max_length=MAX_PROMPTS)]
  )
  suffix: str | None = None
  logprobs: Top | None = None
  best_of: Annotated[int, Field(ge=1)] | None = None


class TokenizeText(Wire):
  """POST /tokenize of a text."""

  model: str | None = None
  prompt: str
  add_special_tokens: bool = True
  return_token_strs: bool = False


class TokenizeChat(Rendering):
  """POST /tokenize of messages."""

  model: str | None = None
  return_token_strs: bool = False


class Detokenize(Wire):
  """POST /detokenize."""

  model: str | None = None
  tokens: Prompt
