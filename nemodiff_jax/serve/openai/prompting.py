"""Prompts of requests as text and ids."""

from collections.abc import Mapping, Sequence
from typing import Any

from nemodiff_jax.prompts import END_THINK, START_THINK
from nemodiff_jax.serve.errors import Refusal
from nemodiff_jax.serve.protocol.openai import ChatRequest, Rendering
from nemodiff_jax.serve.served import Served
from nemodiff_jax.text.chat import ChatTemplate, check_messages

_OURS = (
  "messages", "tools", "documents", "generation", "add_generation_prompt",
  "continue_final_message", "chat_template",
)  # fmt: skip
_MARK = "\ue000final\ue001"  # Of a private area: no template makes it.


def render(served: Served, request: Rendering) -> str:
  """The text of a conversation, as its template writes it.

  Raises:
    Refusal: options that exclude each other.
    UserError: messages that are none, or what the template refuses.
  """
  check_messages(request.messages)
  if request.continue_final_message and request.add_generation_prompt:
    if "add_generation_prompt" in request.model_fields_set:
      raise Refusal(
        "continue_final_message and add_generation_prompt exclude each other.",
        "continue_final_message",
      )
  template, variables = _template(served, request), _variables(request)
  if isinstance(request, ChatRequest):
    variables |= _effort(template, request)
  if request.continue_final_message:
    return _continued(template, request.messages, variables)
  generation = request.add_generation_prompt
  return template.render(request.messages, generation=generation, **variables)


def opens_thinking(text: str) -> bool:
  """Whether a prompt ends inside of reasoning."""
  return text.rfind(START_THINK) > text.rfind(END_THINK)


def _template(served: Served, request: Rendering) -> ChatTemplate:
  served.text_tokenizer()
  if request.chat_template is not None:
    if not served.request_templates:
      raise Refusal(
        "chat_template: templates of requests are not taken; start the server"
        " with --allow_request_templates.",
        "chat_template",
      )
    tokens = served.template.tokens if served.template else {}
    return ChatTemplate(request.chat_template, tokens)
  if served.template is None:
    raise Refusal(
      "this checkpoint has no chat template; use /v1/completions.", "messages"
    )
  return served.template


def _variables(request: Rendering) -> dict[str, Any]:
  for name in request.chat_template_kwargs:
    if name in _OURS:
      raise Refusal(
        f"chat_template_kwargs should not hold {name!r}: it is a field of the"
        " request.",
        "chat_template_kwargs",
      )
  variables: dict[str, Any] = {**request.chat_template_kwargs}
  if request.documents is not None:
    variables["documents"] = request.documents
  calls = not isinstance(request, ChatRequest) or request.tool_choice != "none"
  if request.tools and calls:
    variables["tools"] = [
      t.model_dump(exclude_none=True, exclude_unset=True) for t in request.tools
    ]
  return variables


def _effort(template: ChatTemplate, request: ChatRequest) -> dict[str, Any]:
  """reasoning_effort, for templates that read it or can do without thinking."""
  effort = request.reasoning_effort
  if effort is None:
    return {}
  if template.mentions("reasoning_effort"):
    return {"reasoning_effort": effort}
  if template.mentions("enable_thinking"):
    think = request.chat_template_kwargs.get("enable_thinking")
    return {"enable_thinking": effort != "none" if think is None else think}
  raise Refusal(
    "reasoning_effort: this model's template knows no reasoning.",
    "reasoning_effort",
  )


def _continued(
  template: ChatTemplate,
  messages: Sequence[Mapping[str, Any]],
  variables: dict[str, Any],
) -> str:
  """The text up to the end of the last message's content."""
  *before, last = messages
  content = last.get("content")
  if last.get("role") != "assistant" or not isinstance(content, str):
    raise Refusal(
      "continue_final_message needs a last message of the assistant whose"
      " content is a text.",
      "continue_final_message",
    )
  marked = [*before, {**last, "content": content + _MARK}]
  text = template.render(marked, generation=False, **variables)
  if _MARK not in text:
    raise Refusal(
      "continue_final_message: this model's template does not show the last"
      " message as it is.",
      "continue_final_message",
    )
  return text[: text.rindex(_MARK)]
