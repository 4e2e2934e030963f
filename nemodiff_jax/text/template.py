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

# Stand for a text and for a list of parts, to see if a template shows them.
_PROBE = "7305912846"  # Digits are the same in capitals.
_PARTS = [{"type": "text", "text": _PROBE}]


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
      "tools": None,
      "documents": None,
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
      probe = with_contents(said, lambda _: _PARTS)
      if not _shows(run, with_arguments(probe, parsed)):
        said = with_contents(said, joined)
    if any(m.get("tool_calls") for m in said):
      if not _shows(run, with_arguments(said, lambda _: _PROBE)):
        said = with_arguments(said, parsed)
    return run(said)

  def mentions(self, text: str) -> bool:
    """Whether any of the templates holds a text."""
    return any(text in source for source in self._sources.values())

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


def _shows(run: Callable[[list[Message]], str], said: list[Message]) -> bool:
  """Whether the template shows what stands for a value as a value."""
  try:
    shown = run(said)
  except UserError:
    return False
  # A list that is printed as Python prints it has not been read.
  return _PROBE in shown and str(_PARTS) not in shown


def _reason(error: Exception) -> str:
  """What went wrong, in one line that ends with a full stop."""
  said = " ".join(str(error).split()) or type(error).__name__
  return said if said.endswith((".", "!", "?")) else f"{said}."
