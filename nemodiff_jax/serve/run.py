"""Runs the application until a signal, then lets what runs come to its end."""

import asyncio
import resource
import socket
import sys
from collections.abc import Callable
from typing import Any

import uvicorn

from nemodiff_jax.errors import UserError
from nemodiff_jax.serve.app import make_app
from nemodiff_jax.serve.contract import Engine
from nemodiff_jax.serve.served import Served
from nemodiff_jax.serve.service import Service

_CLOSE_SECONDS = 5  # For connections, once nothing runs any more.


def run_server(
  load: Callable[[], tuple[Served, Engine]],
  host: str,
  port: int,
  api_key: str | None,
  drain_seconds: float,
) -> None:
  """Serves until SIGTERM or Ctrl-C, and returns when it has ended.

  On the first signal no more requests are taken; those that run have
  `drain_seconds`, then they are cancelled. A second signal cancels at once.

  Args:
    load: makes the model and its engine; /health says 503 until it has.
    host: address to listen on.
    port: 0: any that is free.
    api_key: that requests have to bring; None: none.
    drain_seconds: see above.

  Raises:
    UserError: the address cannot be had; or what `load` raises.
  """
  door = _listen(host, port)
  _raise_file_limit()
  service = Service()
  config = uvicorn.Config(
    make_app(service, load, api_key),
    log_level="warning",
    timeout_graceful_shutdown=_CLOSE_SECONDS,
  )
  shown = f"[{host}]" if ":" in host else host
  print(
    f"listening on http://{shown}:{door.getsockname()[1]}",
    file=sys.stderr,
    flush=True,
  )
  print("loading the model: answers are 503 until it is ready", file=sys.stderr)
  asyncio.run(_Draining(config, service, drain_seconds).serve([door]))
  if service.failure is not None:
    raise service.failure


class _Draining(uvicorn.Server):
  """A server that drains before it closes its door."""

  def __init__(self, config: uvicorn.Config, service: Service, seconds: float):
    super().__init__(config)
    self._service = service
    self._seconds = seconds
    self._drain: asyncio.Task | None = None
    self._loop: asyncio.AbstractEventLoop | None = None

  async def serve(self, sockets=None) -> None:
    self._loop = asyncio.get_running_loop()
    await super().serve(sockets)

  async def on_tick(self, counter: int) -> bool:
    if self._service.failure is not None:
      return True
    return await super().on_tick(counter)

  def handle_exit(self, sig: int, frame: Any) -> None:
    """A signal: in the main thread, between any two of its instructions."""
    if self._loop is not None:
      self._loop.call_soon_threadsafe(self._end)

  def _end(self) -> None:
    if self._drain is None:
      self._drain = asyncio.create_task(self._finish())
    else:
      self._drain.cancel()
      self.should_exit = self.force_exit = True

  async def _finish(self) -> None:
    await self._service.drain(self._seconds)
    self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  try:
    door = socket.create_server((host, port), family=family, backlog=2048)
  except (OSError, OverflowError) as e:
    raise UserError(
      f"cannot listen on {host}, port {port} ({e}); choose another --host or"
      " --port."
    ) from e
  # Connections inherit it. asyncio sets it for sockets of its own alone, and
  # without it every answer in two parts waits 40 ms for the client's kernel.
  door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
  return door


def _raise_file_limit() -> None:
  """Every connection is a file, and the usual limit is 1,024."""
  _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
