"""Messages of a conversation: which are served, and what templates see."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nemodiff_jax.errors import UserError

ROLES = ("system", "developer", "user", "assistant", "tool")
# Names that the reasoning of a past reply goes by; templates read the first.
_REASONING = ("reasoning_content", "thinking", "reasoning")
Message = dict[str, Any]


def check_messages(messages: Any) -> None:
  """Raises a UserError unless these are messages with known roles."""
  if not isinstance(messages, (list, tuple)) or not messages:
    raise UserError(
      "messages should be a list of at least one message, got"
      f" {messages!r:.200}."
    )
  for message in messages:
    if not isinstance(message, Mapping) or not _has_content(message):
      raise UserError(
        "each of messages should hold a role and a content (a text, or a list"
        f" of parts of type text), got {message!r:.200}."
      )
    if message.get("role") not in ROLES:
      raise UserError(
        f"role should be one of {ROLES}, got {message.get('role')!r:.60}."
      )
    _check_tool_calls(message.get("tool_calls"))


def plain_messages(
  messages: Sequence[Mapping[str, Any]], developer: bool
) -> list[Message]:
  """Checked messages as templates read them; no key of theirs is None.

  A missing content is '', the reasoning of a reply has all its names, and a
  developer speaks as the system unless the template knows `developer`.
  """
  plain = []
  for message in messages:
    said = {k: v for k, v in message.items() if v is not None}
    said.setdefault("content", "")
    if said["role"] == "developer" and not developer:
      said["role"] = "system"
    reasoning = next((said[k] for k in _REASONING if k in said), None)
    if reasoning is not None:
      said = {"thinking": reasoning, **said, _REASONING[0]: reasoning}
    plain.append(said)
  return plain


def with_contents(messages: Sequence[Message], change: Any) -> list[Message]:
  """Messages whose lists of parts are changed by a function."""
  return [
    m | {"content": change(m["content"])}
    if isinstance(m["content"], (list, tuple))
    else m
    for m in messages
  ]


def with_arguments(messages: Sequence[Message], change: Any) -> list[Message]:
  """Messages whose tool calls' texts of arguments are changed."""

  def call(given: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(given)
    if isinstance(made.get("arguments"), str):
      made["arguments"] = change(made["arguments"])
    if isinstance(made.get("function"), Mapping):
      made["function"] = call(made["function"])
    return made

  return [
    m | {"tool_calls": [call(c) for c in m["tool_calls"]]}
    if "tool_calls" in m
    else m
    for m in messages
  ]


def joined(parts: Sequence[Mapping[str, Any]]) -> str:
  """One text of parts, for templates that know only texts."""
  return "\n".join(p["text"] for p in parts)


def parsed(arguments: str) -> Any:
  """The object that a text of arguments holds; the text where it is none."""
  try:
    found = json.loads(arguments or "{}")
  except (ValueError, RecursionError):
    return arguments
  return found if isinstance(found, dict) else arguments


def _has_content(message: Mapping[str, Any]) -> bool:
  content = message.get("content")
  if content is None:
    return message.get("role") == "assistant" and (
      "tool_calls" in message or any(message.get(k) for k in _REASONING)
    )
  if isinstance(content, (list, tuple)):
    return all(
      isinstance(p, Mapping)
      and p.get("type") == "text"
      and isinstance(p.get("text"), str)
      for p in content
    )
  return isinstance(content, str)


def _check_tool_calls(calls: Any) -> None:
  if calls is None:
    return
  if not isinstance(calls, (list, tuple)) or not all(
    isinstance(c, Mapping) for c in calls
  ):
    raise UserError(
      f"tool_calls should be a list of objects, got {calls!r:.200}."
    )
