"""Requests that wait: by priority, then by arrival."""

import bisect

from nemodiff_jax.errors import UserError
from nemodiff_jax.serve.request import Request


class QueueFull(UserError):
  """As many requests wait as may.

  Attributes:
    size: how many wait.
    limit: how many may.
  """

  def __init__(self, size: int, limit: int):
    super().__init__(
      f"{size} requests wait already, and at most {limit} may; send this one"
      " again later, or make the queue longer.",
      "queue_full",
    )
    self.size = size
    self.limit = limit


class WaitingQueue:
  """Bounded; nobody is passed by one of the same priority who came later."""

  def __init__(self, limit: int):
    if limit < 1:
      raise UserError(f"the queue should hold at least 1 request, got {limit}.")
    self.limit = limit
    self._waiting: list[Request] = []

  def __len__(self) -> int:
    return len(self._waiting)

  def __iter__(self):
    return iter(self._waiting)

  def add(self, request: Request) -> None:
    """Takes a request that is new.

    Raises:
      QueueFull: there is no room; the request can be sent again.
    """
    if len(self) >= self.limit:
      raise QueueFull(len(self), self.limit)
    self.restore(request)

  def restore(self, request: Request) -> None:
    """Takes one back to the place it had; there is always room for it."""
    bisect.insort(self._waiting, request, key=lambda r: r.order)

  def first(self) -> Request | None:
    """Who is next; None: nobody waits."""
    return self._waiting[0] if self._waiting else None

  def remove(self, request: Request) -> None:
    """Lets go one that waits."""
    at = bisect.bisect_left(self._waiting, request.order, key=lambda r: r.order)
    if self._waiting[at : at + 1] != [request]:
      raise ValueError(f"request {request.arrival} does not wait.")
    del self._waiting[at]
