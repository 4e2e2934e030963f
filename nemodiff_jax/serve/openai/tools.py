"""Tool calls: which form a template has taught the model, and what is asked.

xml       <tool_call><function=NAME><parameter=KEY>value</parameter>...
json      <tool_call>{"name": ..., "arguments": {...}}</tool_call>
named     the arguments of the one function that has to be called
required  [{"name": ..., "parameters": {...}}, ...]
"""

from nemodiff_jax.serve.errors import Refusal
from nemodiff_jax.serve.protocol.openai import ChatRequest, Choose
from nemodiff_jax.text.chat import ChatTemplate

START, END = "<tool_call>", "</tool_call>"


def check(request: ChatRequest) -> None:
  """Raises a Refusal for tools and choices that do not go together."""
  choice, tools = request.tool_choice, request.tools
  if tools is not None and not tools:
    raise Refusal("tools should hold a tool, or be left out.", "tools")
  if choice not in (None, "none") and tools is None:
    raise Refusal("tool_choice needs tools.", "tool_choice")
  names = [t.function.name for t in tools or ()]
  if len(set(names)) < len(names):
    raise Refusal("tools should have names of their own.", "tools")
  if isinstance(choice, Choose) and choice.function.name not in names:
    raise Refusal(
      f"tool_choice names {choice.function.name!r}, which is not in tools.",
      "tool_choice",
    )


def form(template: ChatTemplate | None, request: ChatRequest) -> str | None:
  """How the answer writes its calls; None: none are looked for.

  Raises:
    Refusal: the template knows no tools, and none is forced.
  """
  choice = request.tool_choice
  if request.tools is None or choice == "none":
    return None
  if isinstance(choice, Choose):
    return "named"
  if choice == "required":
    return "required"
  if template is None or not template.mentions(START):
    raise Refusal(
      "tools: this model's template knows no tool calls; tool_choice"
      " 'required' or a function's name can be served.",
      "tools",
    )
  return "xml" if template.mentions("<function=") else "json"
