"""Chat templates of checkpoints, rendered in jinja2's sandbox.

A template is code that came with a download: it runs in the immutable sandbox
and sees nothing but the messages and a few functions that Hugging Face
templates expect.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemodiff_jax.errors import UserError
from nemodiff_jax.text.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")


class ChatTemplate:
  """One compiled template.

  Attributes:
    tokens: special tokens that the template may name, such as bos_token.
  """

  def __init__(self, source: str, tokens: Mapping[str, str]):
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
      trim_blocks=True,
      lstrip_blocks=True,
      extensions=["jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _tojson
    names: dict[str, Any] = environment.globals
    names |= {"raise_exception": _refuse, "strftime_now": _now}
    try:
      self._template = environment.from_string(source)
    except jinja2.TemplateError as e:
      raise UserError(f"chat template: {e}.", "template") from e
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
      **variables: passed on, such as enable_thinking.

    Raises:
      UserError: messages that are none, or what the template refuses.
    """
    import jinja2

    check_messages(messages)
    try:
      return self._template.render(
        messages=list(messages),
        add_generation_prompt=generation,
        **self.tokens,
        **variables,
      )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError) as e:
      if isinstance(e, UserError):
        raise
      raise UserError(f"chat template: {e}.", "template") from e


def load_template(folder: Path) -> ChatTemplate | None:
  """chat_template.jinja, or the one in tokenizer_config.json; None: neither."""
  path = folder / "tokenizer_config.json"
  config: dict[str, Any] = {}
  if path.exists():
    try:
      config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
      raise UserError(f"{path}: expected JSON ({e}).") from e
  tokens = {}
  for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
    value = config.get(name)
    value = value.get("content") if isinstance(value, dict) else value
    if isinstance(value, str):
      tokens[name] = value
  file = folder / "chat_template.jinja"
  source = (
    file.read_text(encoding="utf-8")
    if file.exists()
    else config.get("chat_template")
  )
  if isinstance(source, list):  # [{"name", "template"}]: the default one.
    named = {t["name"]: t["template"] for t in source}
    source = named.get("default")
  return None if source is None else ChatTemplate(source, tokens)


def encode_chat(
  template: ChatTemplate | None,
  tokenizer: Tokenizer | None,
  messages: Sequence[Mapping[str, Any]],
  **variables: Any,
) -> list[int]:
  """Ids of a conversation that ends with the opening of a reply.

  Where template and tokenizer both begin with BOS, one of the two is dropped.

  Raises:
    UserError: no template, no tokenizer, or what `render` refuses.
  """
  if template is None or tokenizer is None:
    raise UserError(
      "this checkpoint has no chat template and tokenizer"
      " (chat_template.jinja), so messages cannot be used; give a prompt."
    )
  ids = tokenizer.encode(template.render(messages, **variables))
  bos = template.tokens.get("bos_token")
  if bos and ids[:2] == [tokenizer.id_of(bos)] * 2:
    return ids[1:]
  return ids


def check_messages(messages: Any) -> None:
  """Raises a UserError unless these are messages with known roles."""
  if not isinstance(messages, (list, tuple)) or not messages:
    raise UserError(
      f"messages should be a list of at least one message, got {messages!r}."
    )
  for message in messages:
    if not isinstance(message, Mapping) or not isinstance(
      message.get("content"), str
    ):
      raise UserError(
        "each of messages should hold a role and a content (a text), got"
        f" {message!r}."
      )
    if message.get("role") not in ROLES:
      raise UserError(
        f"role should be one of {ROLES}, got {message.get('role')!r}."
      )


def _tojson(value: Any, indent: int | None = None) -> str:
  return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
  raise UserError(f"chat template: {message}", "template")


def _now(form: str) -> str:
  return datetime.datetime.now().strftime(form)
