"""Calls answered by an engine as they are done: no HTTP, no event loop."""

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

from nemodiff_jax.errors import UserError
from nemodiff_jax.serve.contract import Engine, Event
from nemodiff_jax.serve.openai.replies import Reply
from nemodiff_jax.serve.openai.requests import Call
from nemodiff_jax.serve.served import Served


@dataclasses.dataclass
class _Running:
  """A call, and what has been told of its choices.

  Attributes:
    call: as it was read.
    events: of each choice.
    left: choices that have not ended.
  """

  call: Call
  events: list[list[Event]]
  left: int


def answers(
  served: Served,
  engine: Engine,
  calls: Sequence[Callable[[], Call]],
  ahead: int,
  lead: int | None = None,
) -> Iterator[tuple[int, dict[str, Any] | UserError]]:
  """Yields (index, body of the answer or why there is none) as they are done.

  Args:
    served: the model.
    engine: that nobody else steps.
    calls: each makes its call when its turn comes: what it makes may be large.
    ahead: choices that may be in the engine when another call is added.
    lead: calls that may be answered before the first that is not; None: any
      number.
  """
  running: dict[int, _Running] = {}
  owners: dict[Hashable, tuple[int, int]] = {}
  undone, given = set(range(len(calls))), 0
  while undone:
    most = len(calls) if lead is None else min(undone) + lead
    while given < min(most, len(calls)) and len(owners) < ahead:
      try:
        call = calls[given]()
        requests = _submit(engine, call)
      except UserError as e:
        undone.remove(given)
        yield given, e
      else:
        owners |= {r: (given, i) for i, r in enumerate(requests)}
        events: list[list[Event]] = [[] for _ in requests]
        running[given] = _Running(call, events, len(requests))
      given += 1
    for event in engine.step():
      index, choice = owners[event.request]
      mine = running[index]
      mine.events[choice].append(event)
      if event.finish_reason is None:
        continue
      del owners[event.request]
      mine.left -= 1
      if not mine.left:
        del running[index]
        undone.remove(index)
        yield index, Reply(served, mine.call).whole(mine.events)


def _submit(engine: Engine, call: Call) -> list[Hashable]:
  """Hands all choices to the engine, or none."""
  requests: list[Hashable] = []
  try:
    for job in call.jobs:
      requests.append(engine.submit(job))
  except UserError:
    for request in requests:
      engine.cancel(request)
    raise
  return requests
