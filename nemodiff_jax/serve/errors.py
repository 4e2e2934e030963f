"""Refusals, and the forms in which each protocol tells them."""

from typing import TYPE_CHECKING, Any, TypeVar

from nemodiff_jax.errors import UserError
from nemodiff_jax.serve.queue import QueueFull

if TYPE_CHECKING:
  from pydantic import BaseModel, ValidationError

_TYPES = {
  400: "BadRequestError",
  401: "AuthenticationError",
  404: "NotFoundError",
  405: "MethodNotAllowedError",
  408: "RequestTimeoutError",
  413: "RequestTooLargeError",
  429: "RateLimitError",
  500: "InternalServerError",
  503: "ServiceUnavailableError",
}
Kind = TypeVar("Kind", bound="BaseModel")
LONGEST = 500  # Characters: a value in a message may be a whole book.
RETRY_AFTER = 1  # Seconds.


class Refusal(UserError):
  """A request that is not served.

  Attributes:
    param: the field that is at fault, where one is.
    status: HTTP's.
  """

  def __init__(self, message: str, param: str | None = None, status: int = 400):
    super().__init__(message)
    self.param = param
    self.status = status


def read(kind: type[Kind], given: Any) -> Kind:
  """`given` as a request.

  Raises:
    Refusal: the first thing that is wrong with it; param names the field.
  """
  from pydantic import ValidationError  # Refusals do without the extra.

  try:
    return kind.model_validate(given)
  except ValidationError as e:
    raise _refusal(e) from e


def as_refusal(error: UserError) -> Refusal:
  """Any UserError, with the field that its message begins with."""
  if isinstance(error, Refusal):
    return error
  if isinstance(error, QueueFull):
    return Refusal(str(error), status=429)
  first = str(error).split(maxsplit=1)[0] if str(error) else ""
  return Refusal(str(error), _PARAMS.get(first))


_PARAMS = {
  name: name
  for name in (
    "temperature top_p top_k min_p seed stop stop_token_ids ignore_eos logprobs"
    " block_length threshold steps_per_block draft_threshold mode messages"
  ).split()
} | {
  "max_new_tokens": "max_tokens",
  "role": "messages",
  "each": "messages",
  "token": "prompt",
}


def openai_error(refusal: Refusal) -> dict[str, Any]:
  """The body of OpenAI's protocol."""
  return {
    "error": {
      "message": short(str(refusal)),
      "type": _TYPES.get(refusal.status, "Error"),
      "param": refusal.param,
      "code": refusal.status,
    }
  }


def headers(refusal: Refusal) -> dict[str, str]:
  """What tells a client whether to come again."""
  if refusal.status in (429, 503):
    return {"Retry-After": str(RETRY_AFTER)}
  return {"x-should-retry": "false"}


def short(message: str) -> str:
  """A message without a book in it."""
  return message if len(message) <= LONGEST else message[:LONGEST] + "..."


def _refusal(error: "ValidationError") -> Refusal:
  found = error.errors(include_url=False, include_context=False)[0]
  names = [str(x) for x in found["loc"]]
  param = names[0][:100] if names else None
  if found["type"] == "extra_forbidden":
    where = f" of {'.'.join(names[:-1])}" if names[1:] else ""
    return Refusal(f"{names[-1][:100]!r}{where} is not a field.", param)
  got = "" if found["type"] == "missing" else f", got {found['input']!r:.60}"
  where = ".".join(names)[:100] or "the body"
  return Refusal(f"{where}: {found['msg'][:200]}{got}.", param)
