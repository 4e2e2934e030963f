"""One choice of an answer, as its events come: what is new, and all of it."""

import dataclasses
from collections.abc import Sequence

from nemodiff_jax.decode.results import Logprobs
from nemodiff_jax.serve.contract import Counts, Event, Job
from nemodiff_jax.serve.openai.reasoning import Reasoning
from nemodiff_jax.serve.openai.requests import Call
from nemodiff_jax.serve.openai.tool_stream import (
  Content,
  Item,
  Piece,
  ToolStream,
)
from nemodiff_jax.serve.protocol.openai import ChatRequest, Choose
from nemodiff_jax.serve.served import Served


@dataclasses.dataclass(frozen=True)
class Said:
  """What an event adds.

  Attributes:
    reasoning: text of the reasoning.
    items: content and pieces of calls, in order.
    ids: tokens.
    logprobs: of these tokens.
    ended: whether nothing follows.
  """

  reasoning: str
  items: list[Item]
  ids: Sequence[int]
  logprobs: Logprobs | None
  ended: bool


class Choice:
  """A choice that grows.

  Attributes:
    index: among the choices.
    job: what it was asked by.
    ids: tokens so far.
    finish_reason: once it has ended.
    stop_reason: the stop text or id that ended it.
    counts: of the ended row.
    reasoning_tokens: how many of the tokens are reasoning.
  """

  def __init__(self, served: Served, call: Call, index: int):
    """The choice at its beginning."""
    self.index = index
    self.job: Job = call.jobs[index]
    self.ids: list[int] = []
    self.finish_reason: str | None = None
    self.stop_reason: int | str | None = None
    self.counts = Counts()
    self._request = call.request
    self._form = call.calls
    self._reasoning = None
    if call.thinking is not None:
      self._reasoning = Reasoning(served.text_tokenizer(), call.thinking)
    self._tools = None
    if call.calls is not None and isinstance(call.request, ChatRequest):
      self._tools = _tool_stream(call.calls, call.request)

  @property
  def reasoning_tokens(self) -> int:
    """Tokens of the reasoning."""
    return 0 if self._reasoning is None else self._reasoning.tokens

  def push(self, event: Event) -> Said:
    """What an event adds to the choice."""
    self.ids += event.token_ids
    ended, text = event.finish_reason is not None, event.text
    if ended:
      self.stop_reason = event.matched
      self.counts = event.counts or Counts()
      if isinstance(event.matched, str):
        text += event.matched * self._request.include_stop_str_in_output
    thought, said = "", text
    if self._reasoning is not None:
      thought, said = self._reasoning.push(text, event.token_ids)
      if ended:
        rest = self._reasoning.close()
        thought, said = thought + rest[0], said + rest[1]
    items = self._divide(said, ended)
    if ended:
      self.finish_reason = self._finish(event.finish_reason or "stop")
    if not getattr(self._request, "include_reasoning", True):
      thought = ""
    return Said(thought, items, event.token_ids, event.logprobs, ended)

  def _divide(self, text: str, ended: bool) -> list[Item]:
    if self._tools is None:
      return [Content(text)] if text else []
    items = self._tools.push(text)
    return items + self._tools.close() if ended else items

  def _finish(self, reason: str) -> str:
    called = self._tools is not None and self._tools.count > 0
    if reason == "stop" and called and self._form != "named":
      return "tool_calls"
    return reason


def _tool_stream(form: str, request: ChatRequest) -> ToolStream:
  functions = [t.function for t in request.tools or ()]
  choice = request.tool_choice
  return ToolStream(
    form,
    {f.name: f.parameters for f in functions},
    choice.function.name if isinstance(choice, Choose) else None,
    None if request.parallel_tool_calls else 1,
  )


def merged(items: Sequence[Item]) -> tuple[str, list[dict]]:
  """All items of a choice: its content, and its calls as a message has them."""
  content = "".join(i.text for i in items if isinstance(i, Content))
  calls: list[dict] = []
  for item in items:
    if not isinstance(item, Piece):
      continue
    if item.name is not None:
      function = {"name": item.name, "arguments": item.arguments}
      calls.append({"id": item.id, "type": "function", "function": function})
    else:
      calls[item.index]["function"]["arguments"] += item.arguments
  return content, calls
