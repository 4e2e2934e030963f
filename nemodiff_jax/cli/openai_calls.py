"""Requests of batch files, read and answered by the server's own code.

What a body does not set comes of the command's flags; the rest is the server's:
names, defaults, refusals, answers. It needs the extra [serve].
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nemodiff_jax.cli.openai_lines import CHAT, Request
from nemodiff_jax.decode.config import DecodeConfig, RowSettings, check_prompt
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import Checkpoint
from nemodiff_jax.model import Model
from nemodiff_jax.prompts import finish_row
from nemodiff_jax.serve.errors import Refusal, read

if TYPE_CHECKING:
  from nemodiff_jax.serve.contract import Job
  from nemodiff_jax.serve.lanes import Lanes
  from nemodiff_jax.serve.openai.requests import Call
  from nemodiff_jax.serve.served import Served

_AHEAD = 2  # Choices that wait in the engine, per row of it.
_MOST = 1024  # Choices of a request.


@dataclasses.dataclass(frozen=True)
class Calls:
  """Reads the requests of a job, and answers them.

  Attributes:
    checkpoint: whose config, tokenizer and template serve them.
    config: how they are decoded that say nothing else.
    row: settings of requests that set none.
    max_length: limit on positions, if one is set.
    enable_thinking: for templates, of requests that do not say.
    name: of the model, for answers to requests that give none.
  """

  checkpoint: Checkpoint | Model
  config: DecodeConfig
  row: RowSettings
  max_length: int | None = None
  enable_thinking: bool | None = None
  name: str = ""

  @functools.cached_property
  def served(self) -> "Served":
    """The model as requests see it."""
    from nemodiff_jax.serving import make_served

    return make_served(
      self.checkpoint,
      self.config,
      name=self.name,
      max_length=self.max_length,
    )

  def read(self, request: Request) -> "Call":
    """A request as jobs, with what the flags say of it.

    Raises:
      UserError: as `serve.openai.requests`; a stream; no tokenizer; or the
        server's packages are not installed.
    """
    try:
      from nemodiff_jax.serve.openai.requests import read_chat, read_completion
      from nemodiff_jax.serve.protocol.openai import (
        ChatRequest,
        CompletionRequest,
      )

      served = self.served
    except ImportError as e:
      raise UserError(
        f"lines of batch files need the extra [serve] ({e.name} is not"
        " installed): pip install 'nemodiff-jax[serve]'"
      ) from e
    if served.tokenizer is None:
      raise UserError("this checkpoint has no tokenizer: answers are texts.")
    if request.url == CHAT:
      given = read(ChatRequest, self._body(request))
      call = read_chat(served, given)
    else:
      given = read(CompletionRequest, self._body(request))
      call = read_completion(served, given)
    if given.stream:
      raise Refusal("stream is not for a batch: answers are whole.", "stream")
    own = {given.thinking_token_budget, given.max_thinking_tokens} != {None}
    if own or self.row.max_thinking_tokens is None:
      return call
    return dataclasses.replace(call, jobs=[self._budget(j) for j in call.jobs])

  def lanes(self, model: Model, size: int, longest: int) -> "Lanes":
    """Engines that answer requests.

    Args:
      model: with its weights.
      size: choices that run at once, in each mode and width.
      longest: positions that one of them may need.
    """
    from nemodiff_jax.serving import open_lanes

    return open_lanes(
      model,
      self.config,
      rows=size,
      queue=size * (1 + _AHEAD) + _MOST,
      max_length=longest,
    )

  def answers(
    self,
    lanes: "Lanes",
    requests: Sequence[Request],
    size: int,
    lead: int | None = None,
  ) -> Iterator[tuple[int, dict[str, Any] | UserError]]:
    """Yields (index, body of the answer or why there is none) as they are done.

    Args:
      lanes: that nobody else uses.
      requests: that `read` takes.
      size: as of the lanes.
      lead: requests that may be answered before the first that is not.
    """
    from nemodiff_jax.serve.openai.offline import answers

    calls = [functools.partial(self.read, r) for r in requests]
    yield from answers(self.served, lanes, calls, size * (1 + _AHEAD), lead)

  def _body(self, request: Request) -> dict[str, Any]:
    """The body, with the flags' values of what it does not set."""
    row, given = self.row, request.body
    own: dict[str, Any] = {
      name: getattr(row, name)
      for name in ("temperature", "top_k", "top_p", "min_p", "seed")
    }
    own["request_id"] = request.id
    if row.stop:
      own["stop"] = list(row.stop)
    if request.url != CHAT or "max_completion_tokens" not in given:
      own["max_tokens"] = row.max_new_tokens
    body = own | given
    kwargs = given.get("chat_template_kwargs", {})
    if self.enable_thinking is None or not isinstance(kwargs, dict):
      return body
    if request.url == CHAT and "reasoning_effort" not in given:
      think = {"enable_thinking": self.enable_thinking}
      body["chat_template_kwargs"] = think | kwargs
    return body

  def _budget(self, job: "Job") -> "Job":
    """The job with the budget of the flags, which may name the token."""
    row = dataclasses.replace(
      job.row,
      max_thinking_tokens=self.row.max_thinking_tokens,
      end_think_token_id=self.row.end_think_token_id,
    )
    row = finish_row(self.checkpoint.tokenizer, row)
    check_prompt(job.prompt, row, self.checkpoint.config, self.max_length)
    return dataclasses.replace(job, row=row)
