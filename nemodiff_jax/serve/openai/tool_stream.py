"""Reads tool calls out of text as it comes.

What comes out is the same however the text was cut. A call's name is told once
it is certain, then its arguments piece by piece: text that is the JSON of one
object when the call is complete.
"""

import dataclasses
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from nemodiff_jax.serve.openai.json_end import JsonEnd
from nemodiff_jax.serve.openai.tools import END, START
from nemodiff_jax.text.stream import held_back

_NAME = re.compile(
  r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,'
  r'\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_XML = re.compile(r"\s*<function=([^>]*)>")
_PARAMETER = re.compile(r"\s*<parameter=([^>]*)>(.*?)</parameter>", re.DOTALL)
_XML_END = re.compile(r"\s*</function>")


@dataclasses.dataclass(frozen=True)
class Content:
  """Text of the message."""

  text: str


@dataclasses.dataclass(frozen=True)
class Piece:
  """Part of a call: its id and name first, then pieces of arguments."""

  index: int
  arguments: str = ""
  id: str | None = None
  name: str | None = None


Item = Content | Piece


class ToolStream:
  """Divides a text into content and calls.

  Attributes:
    count: calls that were begun.
  """

  def __init__(
    self,
    form: str,
    schemas: Mapping[str, Any],
    named: str | None = None,
    most: int | None = None,
  ):
    """A stream at its beginning.

    Args:
      form: one of `tools.py`.
      schemas: parameters of each function, by name.
      named: the function of the form 'named'.
      most: calls beyond so many are left out.
    """
    self.count = 0
    self._schemas = schemas
    self._most = most
    self._buffer = ""
    self._items: list[Item] = []
    self._held = ""  # White space that may stand between two calls.
    self._end = JsonEnd()
    self._keys = 0  # Parameters of the call that is read.
    self._name = ""
    self._wrapped = form in ("xml", "json")
    self._step = self._content if self._wrapped else self._list
    if named is not None:
      self._begin(named)
      self._step = self._all

  def push(self, text: str) -> list[Item]:
    """What is certain after more text."""
    self._buffer += text
    while self._step():
      pass
    items, self._items = self._items, []
    return items

  def close(self) -> list[Item]:
    """What is left at the end: an unfinished call's mark-up is content."""
    if self._wrapped and self._step in (self._content, self._open):
      opened = START if self._step == self._open else ""
      self._say(opened + self._buffer)
    items, self._items = self._items, []
    return items

  def _content(self) -> bool:
    at = self._buffer.find(START)
    if at < 0:
      keep = held_back(self._buffer, [START])
      cut = len(self._buffer) - keep
      self._say(self._buffer[:cut])
      self._buffer = self._buffer[cut:]
      return False
    self._say(self._buffer[:at])
    self._buffer = self._buffer[at + len(START) :]
    self._step = self._open
    return True

  def _open(self) -> bool:
    """Behind <tool_call>: the name, in either form."""
    if found := _NAME.match(self._buffer):
      return self._arguments(found)
    if found := _XML.match(self._buffer):
      self._begin(found[1].strip())
      self._buffer, self._keys = self._buffer[found.end() :], 0
      self._step = self._parameters
      return True
    end = self._buffer.find(END)
    if end >= 0:
      self._whole(self._buffer[:end])
      self._buffer = self._buffer[end + len(END) :]
      self._step = self._content
      return True
    rest = self._buffer.lstrip()
    likely = any(x.startswith(rest[: len(x)]) for x in ("{", "<function="))
    if rest and not likely:
      self._say(START)
      self._step = self._content
      return True
    return False

  def _whole(self, text: str) -> None:
    """A call whose name does not come first, or no call at all."""
    try:
      given = json.loads(text)
      name, values = given["name"], given.get("arguments", {})
      self._begin(str(name))
      written = json.dumps(values, ensure_ascii=False)
      self._say_arguments(values if isinstance(values, str) else written)
    except (ValueError, LookupError, TypeError, RecursionError):
      self._say(START + text + END)

  def _arguments(self, found: re.Match) -> bool:
    self._begin(json.loads(found[1]))
    self._buffer = self._buffer[found.end() :]
    self._end = JsonEnd()
    self._step = self._value
    return True

  def _value(self) -> bool:
    """Arguments as they are written."""
    size = self._end.push(self._buffer)
    self._say_arguments(self._buffer[:size])
    self._buffer = self._buffer[size:]
    if not self._end.done:
      return False
    self._step = self._close if self._wrapped else self._list
    return True

  def _parameters(self) -> bool:
    if found := _PARAMETER.match(self._buffer):
      key, text = found[1].strip(), found[2]
      value = _typed(text, self._schemas.get(self._name), key)
      pair = f"{json.dumps(key, ensure_ascii=False)}: {value}"
      self._say_arguments(("{" if self._keys == 0 else ", ") + pair)
      self._keys += 1
      self._buffer = self._buffer[found.end() :]
      return True
    if found := _XML_END.match(self._buffer):
      self._say_arguments("}" if self._keys else "{}")
      self._buffer = self._buffer[found.end() :]
      self._step = self._close
      return True
    return False

  def _close(self) -> bool:
    """Up to </tool_call>."""
    at = self._buffer.find(END)
    if at < 0:
      return False
    self._buffer = self._buffer[at + len(END) :]
    self._step = self._content
    return True

  def _list(self) -> bool:
    """In a list of calls: up to the next one's arguments."""
    self._buffer = self._buffer.lstrip("[], \n}")
    found = _NAME.match(self._buffer)
    return self._arguments(found) if found else False

  def _all(self) -> bool:
    self._say_arguments(self._buffer)
    self._buffer = ""
    return False

  def _begin(self, name: str) -> None:
    self._held, self._name = "", name
    if not self._left_out(self.count):
      ident = f"chatcmpl-tool-{uuid.uuid4().hex}"
      self._items.append(Piece(self.count, id=ident, name=name))
    self.count += 1

  def _say_arguments(self, text: str) -> None:
    if text and not self._left_out(self.count - 1):
      self._items.append(Piece(self.count - 1, text))

  def _left_out(self, index: int) -> bool:
    return self._most is not None and index >= self._most

  def _say(self, text: str) -> None:
    """Content; white space behind a call waits for more than that."""
    text = self._held + text
    self._held = ""
    if self.count and not text.strip():
      self._held = text
    elif text:
      self._items.append(Content(text))


def _typed(text: str, schema: Any, key: str) -> str:
  """The JSON of a parameter that was written as plain text."""
  text = text.removeprefix("\n").removesuffix("\n")
  properties = schema.get("properties") if isinstance(schema, dict) else None
  wanted = properties.get(key) if isinstance(properties, dict) else None
  kinds = _kinds(wanted)
  if kinds and "string" not in kinds:
    try:
      given = text.lower() if text in ("True", "False") else text
      given = "null" if given == "None" else given
      return json.dumps(json.loads(given), ensure_ascii=False)
    except (ValueError, RecursionError):
      pass
  return json.dumps(text, ensure_ascii=False)


def _kinds(schema: Any) -> Sequence[str]:
  """Types that a schema names, of its alternatives too."""
  if not isinstance(schema, dict):
    return []
  kinds = schema.get("type", [])
  found = [kinds] if isinstance(kinds, str) else list(kinds)
  for inner in schema.get("anyOf", []):
    found += _kinds(inner)
  return found
