"""The jinja2 environment that chat templates are written for.

That of transformers: a template is code that came with a download, so it runs
in the immutable sandbox and sees nothing but its variables and these few
functions.
"""

import datetime
import functools
import json
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(jinja2.ext.Extension):
  """`{% generation %}` marks what the assistant says; it renders as it is."""

  tags = {"generation"}

  def parse(self, parser: Any) -> nodes.Node:
    """A call block: what is set inside it stays inside, as in a macro."""
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    said = nodes.CallBlock(self.call_method("_say"), [], [], body)
    return said.set_lineno(line)

  def _say(self, caller: Any) -> str:
    return caller()


@functools.cache
def environment() -> ImmutableSandboxedEnvironment:
  """Tags, filters and functions that templates may use."""
  made = ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[Generation, "jinja2.ext.loopcontrols"],
  )
  made.filters["tojson"] = _tojson
  names: dict[str, Any] = made.globals
  names |= {"raise_exception": _refuse, "strftime_now": _now}
  return made


def _tojson(
  value: Any,
  ensure_ascii: bool = False,
  indent: int | str | None = None,
  separators: tuple[str, str] | None = None,
  sort_keys: bool = False,
) -> str:
  """jinja2's own filter escapes what HTML would read; this one does not."""
  return json.dumps(
    value,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


def _refuse(message: str) -> None:
  raise jinja2.TemplateError(message)


def _now(format: str) -> str:
  return datetime.datetime.now().strftime(format)
