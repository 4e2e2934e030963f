"""The page at `/`: static files, and a policy that lets nothing else in."""

import importlib.resources

from fastapi import APIRouter
from starlette.responses import Response

POLICY = "; ".join(
  (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  )
)
_TYPES = {
  ".html": "text/html",
  ".css": "text/css",
  ".js": "text/javascript",
  ".svg": "image/svg+xml",
}
_HEADERS = {
  "Content-Security-Policy": POLICY,
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cache-Control": "no-cache",
}


def make_router() -> APIRouter:
  """The page's routes; they need no key, since they hold nothing secret."""
  router = APIRouter(include_in_schema=False)
  folder = importlib.resources.files("nemodiff_jax") / "assets" / "page"
  for file in folder.iterdir():
    path = "/" if file.name == "index.html" else f"/page/{file.name}"
    kind = _TYPES["." + file.name.rpartition(".")[2]]
    router.add_api_route(path, _sender(file.read_bytes(), kind))
  return router


def _sender(content: bytes, kind: str):
  async def send() -> Response:
    return Response(content, headers=_HEADERS, media_type=kind)

  return send


def opens(path: str) -> bool:
  """Whether a path is the page's own."""
  return path == "/" or path.startswith("/page/")
