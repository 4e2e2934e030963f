"""Routes of OpenAI's protocol."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from nemodiff_jax.serve.async_engine import Stream
from nemodiff_jax.serve.contract import Event
from nemodiff_jax.serve.errors import Refusal, openai_error, read
from nemodiff_jax.serve.http import EventStream, answer, read_body, while_there
from nemodiff_jax.serve.openai import formats
from nemodiff_jax.serve.openai.prompting import render
from nemodiff_jax.serve.openai.replies import Reply
from nemodiff_jax.serve.openai.requests import Call, read_chat, read_completion
from nemodiff_jax.serve.protocol.openai import (
  ChatRequest,
  CompletionRequest,
  Detokenize,
  TokenizeChat,
  TokenizeText,
)
from nemodiff_jax.serve.rows import text_ids
from nemodiff_jax.serve.service import Service


def make_router(service: Service) -> APIRouter:
  """The routes over a service."""
  router = APIRouter()

  @router.post("/v1/chat/completions")
  async def chat(request: Request) -> Response:
    return await _complete(service, request, ChatRequest, read_chat)

  @router.post("/v1/completions")
  async def completions(request: Request) -> Response:
    return await _complete(service, request, CompletionRequest, read_completion)

  @router.get("/v1/models")
  async def models() -> Response:
    return answer({"object": "list", "data": [_card(service)]})

  @router.get("/v1/models/{name:path}")
  async def model(name: str) -> Response:
    if name != service.served.name:
      raise Refusal(f"the model {name[:100]!r} does not exist.", "model", 404)
    return answer(_card(service))

  @router.post("/tokenize")
  @router.post("/v1/tokenize")
  async def tokenize(request: Request) -> Response:
    given = await read_body(request)
    return answer(await service.read(lambda: _tokens(service, given)))

  @router.post("/detokenize")
  @router.post("/v1/detokenize")
  async def detokenize(request: Request) -> Response:
    given = read(Detokenize, await read_body(request))
    tokenizer = service.served.text_tokenizer()
    text = await service.read(lambda: tokenizer.decode(given.tokens))
    return answer({"prompt": text})

  return router


async def _complete(
  service: Service, request: Request, kind: Any, make: Any
) -> Response:
  given = read(kind, await read_body(request))
  served = service.served
  slow = formats.asked(given) is not None or getattr(given, "tools", None)
  call = await service.read(lambda: make(served, given), bool(slow))
  stream = await service.submit(call.jobs)
  reply = Reply(served, call)
  if given.stream:
    items = _chunks(reply, stream)
    return EventStream(items, openai_error, stream.close)
  with contextlib.closing(stream):
    events = await while_there(request, _gathered(call, stream))
  return answer(reply.whole(events))


async def _chunks(reply: Reply, stream: Stream) -> AsyncIterator[Any]:
  for chunk in reply.begin():
    yield chunk
  async for index, event in stream.events():
    for chunk in reply.chunks(index, event):
      yield chunk
  for chunk in reply.end():
    yield chunk


async def _gathered(call: Call, stream: Stream) -> list[list[Event]]:
  found: list[list[Event]] = [[] for _ in call.jobs]
  async for index, event in stream.events():
    found[index].append(event)
  return found


def _tokens(service: Service, given: dict[str, Any]) -> dict[str, Any]:
  served = service.served
  if "messages" in given:
    chat = read(TokenizeChat, given)
    text = render(served, chat)
    ids = served.text_tokenizer().encode_rendered(text)
    spelled = chat.return_token_strs
  else:
    plain = read(TokenizeText, given)
    ids = text_ids(served, plain.prompt, plain.add_special_tokens)
    spelled = plain.return_token_strs
  made: dict[str, Any] = {
    "count": len(ids),
    "max_model_len": served.max_length,
    "tokens": ids,
    "token_strs": None,
  }
  if spelled:
    made["token_strs"] = [served.spelled(i) for i in ids]
  return made


def _card(service: Service) -> dict[str, Any]:
  served = service.served
  return {
    "id": served.name,
    "object": "model",
    "created": int(service.started),
    "owned_by": "nemodiff",
    "root": served.name,
    "parent": None,
    "max_model_len": served.max_length,
    "permission": [],
    "nemodiff": {
      "mode": served.mode,
      "modes": served.modes,
      "block_lengths": served.widths,
    },
  }
