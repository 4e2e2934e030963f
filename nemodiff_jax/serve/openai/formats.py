"""Which form a request of OpenAI's protocol wants its output in."""

import json
from typing import Any

from nemodiff_jax.serve.errors import Refusal
from nemodiff_jax.serve.openai.tool_grammar import tool_grammar
from nemodiff_jax.serve.protocol.openai import ChatRequest, Choose
from nemodiff_jax.serve.protocol.sampling import Sampling, StructuredOutputs
from nemodiff_jax.serve.structured import Spec, json_spec

_OBJECT = {"type": "object"}
# What belongs to each type; `schema` beside json_object is llama.cpp's form.
_FORMATS = {"text": None, "json_object": "schema", "json_schema": "json_schema"}


def asked(request: Sampling, calls: str | None = None) -> Spec | None:
  """What the output has to match; None: nothing.

  Args:
    request: of either kind.
    calls: how it writes tool calls, from `tools.form`.

  Raises:
    Refusal: a form that is not known, or two of them.
  """
  found = [*_response_format(request), *_structured(request), *_guided(request)]
  if isinstance(request, ChatRequest):
    found += _forced_tools(request)
    functions = [t.function for t in request.tools or ()]
    if calls in ("xml", "json") and any(f.strict for f in functions):
      found.append(Spec("tools", "grammar", tool_grammar(calls, functions)))
  if len(found) > 1:
    fields = " and ".join(spec.field for spec in found)
    raise Refusal(
      f"{fields}: an output can be made to match one form only.",
      found[1].field,
    )
  return found[0] if found else None


def _response_format(request: Sampling) -> list[Spec]:
  field, given = "response_format", request.response_format
  if given is None:
    return []
  kind = given.get("type")
  if not isinstance(kind, str) or kind not in _FORMATS:
    raise Refusal(
      "response_format.type should be text, json_object or json_schema, got"
      f" {kind!r:.60}.",
      field,
    )
  for name in given:
    if name not in ("type", _FORMATS[kind]):
      raise Refusal(
        f"response_format of type {kind} has no {name!r:.60}.", field
      )
  if kind == "text":
    return []
  if kind == "json_object":
    return [json_spec(field, given.get("schema", _OBJECT))]
  holder = given.get("json_schema")
  if not isinstance(holder, dict) or not isinstance(holder.get("schema"), dict):
    raise Refusal(
      "response_format of type json_schema needs json_schema, an object with a"
      " schema.",
      field,
    )
  return [json_spec(field, holder["schema"])]


def _structured(request: Sampling) -> list[Spec]:
  given = request.structured_outputs
  if given is None:
    return []
  return _kinds(given, "structured_outputs.", "structured_outputs")


def _guided(request: Sampling) -> list[Spec]:
  names = ("json", "regex", "choice", "grammar")
  values = {n: getattr(request, f"guided_{n}") for n in names}
  given = StructuredOutputs.model_construct(json_=values.pop("json"), **values)
  return _kinds(given, "guided_", None)


def _kinds(
  given: StructuredOutputs, prefix: str, field: str | None
) -> list[Spec]:
  """Specs of the kinds that are set; `field`: to name instead of each."""
  found = []
  if given.json_ is not None:
    found.append(json_spec(field or f"{prefix}json", given.json_))
  if given.regex is not None:
    found.append(Spec(field or f"{prefix}regex", "regex", given.regex))
  if given.choice is not None:
    if not given.choice:
      raise Refusal(
        f"{prefix}choice should hold a text.", field or "guided_choice"
      )
    source = json.dumps(given.choice)
    found.append(Spec(field or f"{prefix}choice", "choice", source))
  if given.grammar is not None:
    found.append(Spec(field or f"{prefix}grammar", "grammar", given.grammar))
  if given.json_object:
    found.append(json_spec(field or prefix, _OBJECT))
  return found


def _forced_tools(request: ChatRequest) -> list[Spec]:
  """Calls that have to be made, in the form that `tools.py` reads."""
  choice = request.tool_choice
  if isinstance(choice, Choose):
    # One, or none: `tools.check` has not been here yet.
    return [
      json_spec("tool_choice", t.function.parameters or _OBJECT)
      for t in request.tools or ()
      if t.function.name == choice.function.name
    ]
  if choice != "required":
    return []
  calls = [_call(t.function) for t in request.tools or ()]
  schema: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "items": {"anyOf": calls},
  }
  if not request.parallel_tool_calls:
    schema["maxItems"] = 1
  return [json_spec("tool_choice", schema)]


def _call(function: Any) -> dict[str, Any]:
  return {
    "type": "object",
    "properties": {
      "name": {"const": function.name},
      "parameters": function.parameters or _OBJECT,
    },
    "required": ["name", "parameters"],
    "additionalProperties": False,
  }
