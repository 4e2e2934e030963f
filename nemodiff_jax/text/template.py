"""Chat templates, rendered as transformers renders them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nemodiff_jax.errors import UserError
from nemodiff_jax.text.messages import (
  Message,
  check_messages,
  joined,
  parsed,
  plain_messages,
  with_arguments,
  with_contents,
)

_PROBE = "nemodiff-probe"  # Stands for a text, to see if it is shown.


class ChatTemplate:
  """The templates of a checkpoint, each compiled when it is first needed.

  Attributes:
    tokens: special tokens that a template may name, such as bos_token.
  """

  def __init__(
    self,
    source: str | Mapping[str, str],
    tokens: Mapping[str, str],
    broken: UserError | None = None,
  ):
    """One source, or several by name: 'default', 'tool_use' and others.

    Args:
      source: of the template or templates.
      tokens: by name.
      broken: why the folder's templates cannot be read.
    """
    self._sources = {"default": source} if isinstance(source, str) else source
    self._broken = broken
    self.tokens = dict(tokens)

  def render(
    self,
    messages: Sequence[Mapping[str, Any]],
    *,
    generation: bool = True,
    **variables: Any,
  ) -> str:
    """The text of a conversation.

    Args:
      messages: each with a role and a content.
      generation: end with the opening of the assistant's turn.
      **variables: passed on, such as enable_thinking; with `tools` the
        template named 'tool_use' is taken, if there is one.

    Raises:
      UserError: messages that are none, or whatever the template raises.
    """
    check_messages(messages)
    if self._broken is not None:
      raise self._broken
    tools = variables.get("tools")
    source = self._source(tools is not None)
    given = {
      **{"tools": None, "documents": None},
      **self.tokens,
      "add_generation_prompt": generation,
      **variables,
    }

    def run(said: list[Message]) -> str:
      try:
        return _compiled(source).render(messages=said, **given)
      except Exception as e:  # Foreign code: it may raise anything.
        raise UserError(f"chat template: {_reason(e)}", "template") from e

    said = plain_messages(messages, developer="developer" in source)
    if any(not isinstance(m["content"], str) for m in said):
      said = _as_read(run, said, with_contents, _part_probe, joined)
    if any(m.get("tool_calls") for m in said):
      said = _as_read(run, said, with_arguments, lambda _: _PROBE, parsed)
    return run(said)

  def _source(self, tools: bool) -> str:
    for name in ("tool_use", "default") if tools else ("default",):
      if name in self._sources:
        return self._sources[name]
    raise UserError(
      "chat template: expected one named 'default', found"
      f" {sorted(self._sources)}.",
      "template",
    )


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> Any:
  from nemodiff_jax.text.environment import environment

  return environment().from_string(source)


def _as_read(
  run: Callable[[list[Message]], str],
  said: list[Message],
  change_all: Callable[[list[Message], Any], list[Message]],
  probe: Callable[[Any], Any],
  other: Callable[[Any], Any],
) -> list[Message]:
  """Messages as they are if the template shows such values, else changed."""
  try:
    shown = run(change_all(said, probe))
  except UserError:
    return change_all(said, other)
  as_python = f"'{_PROBE}'"  # A list that was printed, not read.
  if _PROBE in shown and as_python not in shown:
    return said
  return change_all(said, other)


def _part_probe(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  return [{"type": "text", "text": _PROBE}]


def _reason(error: Exception) -> str:
  """What went wrong, in one line that ends with a full stop."""
  said = " ".join(str(error).split()) or type(error).__name__
  return said if said.endswith((".", "!", "?")) else f"{said}."
