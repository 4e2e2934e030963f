"""A grammar for free text with tool calls that keep to their schemas.

Lark, as llguidance reads it: text up to <tool_call>, then one of the calls, and
so on. A tool that is not strict may have any arguments.
"""

import json
from collections.abc import Sequence
from typing import Any

from nemodiff_jax.serve.openai.tools import END, START
from nemodiff_jax.serve.protocol.openai import Function
from nemodiff_jax.serve.structured import JSON_OPTIONS

_OBJECT: dict[str, Any] = {"type": "object"}


def tool_grammar(form: str, functions: Sequence[Function]) -> str:
  """The grammar of an answer whose calls have the form 'xml' or 'json'."""
  rules = [
    "start: (head call)* tail",
    f"head[lazy]: TEXT {_quoted(START)}",
    "tail: TEXT",
    "TEXT: /(.|\\n)*/",
    "call: " + " | ".join(f"call_{i}" for i in range(len(functions))),
  ]
  make = _xml if form == "xml" else _json
  for i, function in enumerate(functions):
    rules += make(f"call_{i}", function)
  return "\n".join(rules)


def _json(rule: str, function: Function) -> list[str]:
  begin = f'\n{{"name": {json.dumps(function.name)}, "arguments": '
  end = _quoted("}\n" + END)
  return [f"{rule}: {_quoted(begin)} {_value(_parameters(function))} {end}"]


def _xml(rule: str, function: Function) -> list[str]:
  """Parameters in the order of the schema; those not required may lack."""
  schema = _parameters(function)
  properties = schema.get("properties")
  begin = _quoted(f"\n<function={function.name}>\n")
  end = _quoted(f"</function>\n{END}")
  if not isinstance(properties, dict):
    return [f"{rule}: {begin} {rule}_any", f"{rule}_any[lazy]: TEXT {end}"]
  required = schema.get("required", [])
  parts, rules = [], []
  for i, (name, kind) in enumerate(properties.items()):
    part = f"{rule}_{i}"
    parts.append(part if name in required else f"{part}?")
    if isinstance(kind, dict):  # What it may refer to goes with it.
      kind = kind | {k: v for k, v in schema.items() if k == "$defs"}
    rules += _parameter(part, name, kind)
  return [f"{rule}: {begin} {' '.join(parts)} {end}", *rules]


def _parameter(rule: str, name: str, kind: Any) -> list[str]:
  begin, end = _quoted(f"<parameter={name}>\n"), _quoted("\n</parameter>\n")
  kinds = kind.get("type") if isinstance(kind, dict) else None
  plain = kinds == "string" and "enum" not in kind
  if kinds is None or plain or isinstance(kinds, list):
    return [f"{rule}: {begin} {rule}_text", f"{rule}_text[lazy]: TEXT {end}"]
  if kinds == "string":
    texts = " | ".join(_quoted(str(x)) for x in kind["enum"])
    return [f"{rule}: {begin} ({texts}) {end}"]
  return [f"{rule}: {begin} {_value(kind)} {end}"]


def _parameters(function: Function) -> dict[str, Any]:
  return function.parameters or _OBJECT if function.strict else _OBJECT


def _value(schema: dict[str, Any]) -> str:
  return "%json " + json.dumps(schema | {"x-guidance": JSON_OPTIONS})


def _quoted(text: str) -> str:
  return json.dumps(text, ensure_ascii=False)
