"""The OpenAPI document: bodies are read by hand, so it is told their types."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from nemodiff_jax.serve.protocol.openai import (
  ChatRequest,
  CompletionRequest,
  Detokenize,
  TokenizeText,
)
from nemodiff_jax.serve.protocol.sglang import AbortRequest, GenerateRequest

_BODIES = {
  "/v1/chat/completions": ChatRequest,
  "/v1/completions": CompletionRequest,
  "/tokenize": TokenizeText,
  "/v1/tokenize": TokenizeText,
  "/detokenize": Detokenize,
  "/v1/detokenize": Detokenize,
  "/generate": GenerateRequest,
  "/abort_request": AbortRequest,
}
_STREAMS = "/v1/chat/completions", "/v1/completions", "/generate"
_REF = "#/components/schemas/{model}"


def describe(app: FastAPI) -> None:
  """Makes the application's document hold the bodies' types."""

  def document() -> dict[str, Any]:
    if app.openapi_schema:
      return app.openapi_schema
    made = get_openapi(title=app.title, version=app.version, routes=app.routes)
    kinds: Any = [(kind, "validation") for kind in set(_BODIES.values())]
    _, schemas = models_json_schema(kinds, ref_template=_REF)
    made["components"]["schemas"] |= schemas["$defs"]
    for path, kind in _BODIES.items():
      for method in made["paths"][path].values():
        schema = {"$ref": _REF.format(model=kind.__name__)}
        method["requestBody"] = {
          "required": True,
          "content": {"application/json": {"schema": schema}},
        }
        wrong = {"description": "What is not served, and why."}
        method["responses"].pop("422", None)
        method["responses"] |= {"400": wrong, "429": wrong, "503": wrong}
        if path in _STREAMS:
          method["responses"]["200"]["content"]["text/event-stream"] = {}
    (model,) = made["paths"]["/v1/models/{name}"].values()
    model["responses"]["404"] = {"description": "Another model's name."}
    app.openapi_schema = made
    return made

  untyped: Any = app
  untyped.openapi = document
