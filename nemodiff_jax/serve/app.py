"""The HTTP application: keys, request ids, health, and the protocols' routes."""

import contextlib
import hmac
import uuid
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response

import nemodiff_jax
from nemodiff_jax.errors import UserError
from nemodiff_jax.serve import page
from nemodiff_jax.serve.contract import Engine
from nemodiff_jax.serve.errors import Refusal, as_refusal, openai_error
from nemodiff_jax.serve.http import Gone, refused
from nemodiff_jax.serve.openai import routes as openai_routes
from nemodiff_jax.serve.openapi import describe
from nemodiff_jax.serve.served import Served
from nemodiff_jax.serve.service import Service
from nemodiff_jax.serve.sglang import routes as sglang_routes

_OPEN = ("/health", "/health_generate", "/ping", "/ready", "/version")
_ID = b"x-request-id"


def make_app(
  service: Service,
  load: Callable[[], tuple[Served, Engine]],
  api_key: str | None = None,
) -> FastAPI:
  """The application over a service.

  Args:
    service: that is made ready.
    load: makes the model and its engine, while the application says already
      that it is not ready.
    api_key: that requests have to bring, but for those about health.
  """

  @contextlib.asynccontextmanager
  async def lifespan(_) -> AsyncIterator[None]:
    service.load(load)
    yield
    service.close()

  app = FastAPI(
    title="nemodiff",
    version=nemodiff_jax.__version__,
    redirect_slashes=False,
    lifespan=lifespan,
  )
  _status(app, service)
  app.include_router(page.make_router())
  app.include_router(openai_routes.make_router(service))
  app.include_router(sglang_routes.make_router(service))
  describe(app)
  app.add_exception_handler(UserError, _user_error)
  app.add_exception_handler(HTTPException, _http_error)
  app.add_exception_handler(Gone, lambda request, e: Response(status_code=499))
  app.add_exception_handler(Exception, _failure)
  app.add_middleware(_Door, key=api_key)
  return app


def _status(app: FastAPI, service: Service) -> None:
  @app.get("/health", response_class=Response)
  @app.get("/ping", response_class=Response)
  @app.get("/ready", response_class=Response)
  async def health() -> Response:
    return Response(status_code=200 if service.ready else 503)

  @app.get("/version")
  async def version() -> dict[str, str]:
    return {"version": nemodiff_jax.__version__}

  @app.get("/metrics", response_class=PlainTextResponse)
  async def metrics() -> Response:
    statistics = await service.engine.call(service.engine.engine.statistics)
    text = service.metrics.text(service.served.name, statistics)
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


class _Door:
  """Checks the key, and gives every request an id."""

  def __init__(self, app, key: str | None):
    self._app = app
    self._key = None if key is None else f"Bearer {key}".encode()

  async def __call__(self, scope, receive, send) -> None:
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    given = dict(scope["headers"])
    ident = given.get(_ID, b"")[:200] or uuid.uuid4().hex.encode()

    async def named(message) -> None:
      if message["type"] == "http.response.start":
        message["headers"] = [*message.get("headers", ()), (_ID, ident)]
      await send(message)

    app = self._app
    path = scope["path"]
    free = path in _OPEN or page.opens(path)
    if self._key is not None and not free:
      shown = given.get(b"authorization", b"")
      if not hmac.compare_digest(shown, self._key):
        app = JSONResponse({"error": "Unauthorized"}, 401)
    await app(scope, receive, named)


def _form(request: Request):
  native = request.url.path in sglang_routes.PATHS
  return sglang_routes.error if native else openai_error


async def _user_error(request: Request, error: Exception) -> Response:
  refusal = error if isinstance(error, UserError) else UserError(str(error))
  return refused(as_refusal(refusal), _form(request))


async def _http_error(request: Request, error: Exception) -> Response:
  """What the framework itself refuses: paths and methods that are not there."""
  status = error.status_code if isinstance(error, HTTPException) else 500
  message = f"{request.method} {request.url.path[:100]} is not served."
  refusal = Refusal(message, status=status)
  headers = getattr(error, "headers", None) or {}
  response = refused(refusal, _form(request))
  response.headers.update(headers)
  return response


async def _failure(request: Request, error: Exception) -> Response:
  """A fault of the server's own; the log has its trace."""
  message = f"the server failed ({type(error).__name__}); see its log."
  return refused(Refusal(message, status=500), _form(request))
