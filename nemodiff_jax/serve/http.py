"""Bodies in and answers out, with limits on both."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from nemodiff_jax.errors import UserError
from nemodiff_jax.io.jsonl import dump_line, read_line
from nemodiff_jax.serve.errors import Refusal, as_refusal, headers

MAX_BODY = 8 * 2**20
BODY_SECONDS = 60.0
STALL_SECONDS = 60.0  # That a client may take no byte of an answer.
DONE = b"data: [DONE]\n\n"
T = TypeVar("T")


class Gone(Exception):
  """The client has left; nobody reads an answer."""


async def read_body(request: Request) -> dict[str, Any]:
  """The JSON object of a request's body.

  Raises:
    Refusal: it is none, too large, or takes too long to come.
  """
  parts, size = [], 0
  try:
    async with asyncio.timeout(BODY_SECONDS):
      async for part in request.stream():
        size += len(part)
        if size > MAX_BODY:
          raise Refusal(
            f"the body should have at most {MAX_BODY} bytes.", status=413
          )
        parts.append(part)
  except TimeoutError as e:
    message = f"the body did not come within {BODY_SECONDS:.0f} seconds."
    raise Refusal(message, status=408) from e
  line = read_line(b"".join(parts), 1)
  if line.error is not None:
    raise Refusal(f"the body: {line.error}") from line.error
  return line.value


async def while_there(request: Request, work: Awaitable[T]) -> T:
  """The result of some work, which ends when the client goes away.

  Raises:
    Gone: it has.
  """
  task = asyncio.ensure_future(work)
  watch = asyncio.ensure_future(_gone(request.receive))
  try:
    await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
      raise Gone
    return task.result()
  finally:
    await _end(task, watch)


class EventStream(Response):
  """Server-sent events, until they end or the client goes away."""

  media_type = "text/event-stream"

  def __init__(
    self,
    items: AsyncIterator[dict[str, Any]],
    error: Callable[[Refusal], dict[str, Any]],
    close: Callable[[], None],
  ):
    """A stream.

    Args:
      items: objects to send.
      error: what is sent in the place of the rest where `items` raises.
      close: called at the end, however it comes.
    """
    super().__init__(headers={"Cache-Control": "no-cache"})
    del self.headers["content-length"]
    self._items = items
    self._error = error
    self._close = close

  async def __call__(self, scope, receive, send) -> None:
    """Sends the stream."""
    task = asyncio.ensure_future(self._send(send))
    watch = asyncio.ensure_future(_gone(receive))
    try:
      await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
    finally:
      self._close()
      await _end(task, watch)

  async def _send(self, send) -> None:
    start = {
      "type": "http.response.start",
      "status": 200,
      "headers": self.raw_headers,
    }
    await send(start)

    async def put(data: bytes, more: bool = True) -> None:
      async with asyncio.timeout(STALL_SECONDS):
        body = {"type": "http.response.body", "body": data, "more_body": more}
        await send(body)

    try:
      async for item in self._items:
        await put(event(item))
    except UserError as e:
      await put(event(self._error(as_refusal(e))))
    await put(DONE, more=False)


def event(value: Any) -> bytes:
  """An object as a server-sent event."""
  return b"data: " + dump_line(value) + b"\n"


def answer(value: Any, status: int = 200) -> Response:
  """An object as JSON without NaN."""
  body = dump_line(value)
  return Response(body, status, media_type="application/json")


def refused(
  refusal: Refusal, form: Callable[[Refusal], dict[str, Any]]
) -> Response:
  """The answer to what is not served."""
  body = json.loads(dump_line(form(refusal)))
  return JSONResponse(body, refusal.status, headers(refusal))


async def _gone(receive) -> None:
  """Returns when the client has left."""
  while (await receive())["type"] != "http.disconnect":
    pass


async def _end(*tasks: asyncio.Future) -> None:
  for task in tasks:
    task.cancel()
  await asyncio.gather(*tasks, return_exceptions=True)
