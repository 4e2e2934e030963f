"""Routes of SGLang's native protocol."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

import nemodiff_jax
from nemodiff_jax.decode.config import RowSettings
from nemodiff_jax.serve.async_engine import Stream
from nemodiff_jax.serve.contract import Job
from nemodiff_jax.serve.errors import Refusal, read, short
from nemodiff_jax.serve.http import EventStream, answer, read_body, while_there
from nemodiff_jax.serve.protocol.sglang import AbortRequest, GenerateRequest
from nemodiff_jax.serve.service import Service
from nemodiff_jax.serve.sglang.requests import read_generate, structured
from nemodiff_jax.serve.sglang.row import Row

PATHS = (
  "/generate", "/model_info", "/get_model_info", "/server_info",
  "/get_server_info", "/flush_cache", "/abort_request", "/health_generate",
)  # fmt: skip


def error(refusal: Refusal) -> dict[str, Any]:
  """The body of an answer to what is not served."""
  return {"error": {"message": short(str(refusal))}}


def make_router(service: Service) -> APIRouter:
  """The routes over a service."""
  router = APIRouter()

  @router.put("/generate")
  @router.post("/generate")
  async def generate(request: Request) -> Response:
    return await _generate(service, request)

  @router.get("/model_info")
  @router.get("/get_model_info")
  async def model_info() -> Response:
    return answer(_model_info(service))

  @router.get("/server_info")
  @router.get("/get_server_info")
  async def server_info() -> Response:
    engine = service.engine
    statistics = dict(await engine.call(engine.engine.statistics))
    cycles = statistics.get("cycles", 0)
    length = statistics.get("cycle_tokens", 0) / cycles if cycles else None
    state = statistics | {"avg_spec_accept_length": length}
    about = {"version": nemodiff_jax.__version__, "internal_states": [state]}
    return answer(_model_info(service) | about)

  @router.get("/flush_cache", response_class=PlainTextResponse)
  @router.post("/flush_cache", response_class=PlainTextResponse)
  async def flush_cache() -> Response:
    engine = service.engine
    if not await engine.call(engine.engine.flush):
      raise Refusal("the cache is in use: requests are running.")
    return PlainTextResponse("Cache flushed.\n")

  @router.post("/abort_request", response_class=Response)
  async def abort_request(request: Request) -> Response:
    given = read(AbortRequest, await read_body(request))
    if given.rid is None and not given.abort_all:
      raise Refusal("expected a rid, or abort_all.", "rid")
    service.abort(None if given.abort_all else given.rid)
    return Response(status_code=200)

  @router.get("/health_generate", response_class=Response)
  async def health_generate() -> Response:
    if not service.ready:
      return Response(status_code=503)
    row = RowSettings(max_new_tokens=1, ignore_eos=True)
    config = service.served.config
    prompt = [i for i in range(config.vocab_size) if i != config.mask_id][:1]
    stream = await service.submit([Job(prompt, row)])
    with contextlib.closing(stream):
      async for _ in stream.events():
        pass
    return Response(status_code=200)

  return router


async def _generate(service: Service, request: Request) -> Response:
  given = read(GenerateRequest, await read_body(request))
  served = service.served
  wanted, many = await service.read(
    lambda: read_generate(served, given), structured(given)
  )
  rids = [w.rid for w in wanted]
  stream = await service.submit([w.job for w in wanted], rids)

  def close() -> None:
    stream.close()
    service.forget(rids)

  rows = [Row(served, w) for w in wanted]
  if given.stream:
    return EventStream(_items(rows, stream, many), _stream_error, close)
  try:
    await while_there(request, _fill(rows, stream))
  finally:
    close()
  answers = [row.answer() for row in rows]
  return answer(answers if many else answers[0])


async def _fill(rows: Sequence[Row], stream: Stream) -> None:
  async for index, event in stream.events():
    rows[index].push(event)


async def _items(
  rows: Sequence[Row], stream: Stream, many: bool
) -> AsyncIterator[dict[str, Any]]:
  """Everything so far of the row that an event is about."""
  async for index, event in stream.events():
    rows[index].push(event)
    made = rows[index].answer()
    yield made | {"index": index} if many else made


def _stream_error(refusal: Refusal) -> dict[str, Any]:
  return {
    "error": {
      "message": short(str(refusal)),
      "type": "BadRequestError" if refusal.status < 500 else "ServerError",
      "code": refusal.status,
      "retryable": refusal.status in (429, 503),
    }
  }


def _model_info(service: Service) -> dict[str, Any]:
  served = service.served
  return {
    "model_path": served.name,
    "served_model_name": served.name,
    "tokenizer_path": served.name,
    "is_generation": True,
    "preferred_sampling_params": None,
    "weight_version": "default",
    "load_format": "auto",
    "reasoning_parser": None,
    "tool_call_parser": None,
    "model_type": "nemotron_labs_diffusion",
    "architectures": ["NemotronLabsDiffusionModel"],
    "has_image_understanding": False,
    "has_audio_understanding": False,
    "mode": served.mode,
    "max_length": served.max_length,
  }
