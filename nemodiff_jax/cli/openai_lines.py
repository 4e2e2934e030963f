"""Lines of OpenAI's batch files: their form, and that of the answers.

A request is {"custom_id", "method", "url", "body"}; its answer {"id",
"custom_id", "response": {"status_code", "request_id", "body"}, "error"}. What
is refused has another status code than 200 and the error in the body, as
OpenAI's own files have it. https://platform.openai.com/docs/api-reference/batch
"""

import dataclasses
import hashlib
from typing import Any

from nemodiff_jax.errors import UserError
from nemodiff_jax.serve.errors import as_refusal, openai_error

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_LINE = ("custom_id", "method", "url", "body")


@dataclasses.dataclass(frozen=True)
class Request:
  """What a line asks for.

  Attributes:
    id: made of the line's number and its custom_id.
    url: CHAT or COMPLETIONS.
    body: as a server would get it, without what is null.
  """

  id: str
  url: str
  body: dict[str, Any]


def is_request(line: dict[str, Any]) -> bool:
  """Whether a line has the form of a batch file."""
  return "custom_id" in line or "body" in line


def read_request(given: dict[str, Any], line: int, name: Any) -> Request:
  """A line as a request; what its body says is not looked at.

  A field that is null counts as absent.

  Raises:
    UserError: another form.
  """
  given = _present(given)
  for field in given:
    if field not in _LINE:
      raise UserError(
        f"the line: {field!r:.40} is not served; known are {', '.join(_LINE)}.",
        "unknown_field",
      )
  if given.get("method", "POST") != "POST":
    raise UserError(f"method should be POST, got {given['method']!r:.40}.")
  if not isinstance(given.get("body"), dict):
    raise UserError(f"body should be an object, got {given.get('body')!r:.40}.")
  body = _present(given["body"])
  url = given.get("url", CHAT if "messages" in body else COMPLETIONS)
  if url not in (CHAT, COMPLETIONS):
    raise UserError(f"url should be {CHAT} or {COMPLETIONS}, got {url!r:.60}.")
  return Request(_digest(line, name), url, body)


def answer(line: int, name: Any, body: dict[str, Any]) -> dict[str, Any]:
  """The line that answers a request.

  Args:
    line: the request's number.
    name: its custom_id.
    body: of the answer, as a server gives it.
  """
  return _line(line, name, 200, body)


def refusal(line: int, name: Any, error: UserError) -> dict[str, Any]:
  """The line that says why a request was not served, in the server's words."""
  refused = as_refusal(error)
  return _line(line, name, refused.status, openai_error(refused))


def outcome(answered: dict[str, Any]) -> tuple[Any, bool]:
  """The custom_id of an answer, and whether it was served."""
  served = answered["error"] is None
  return answered["custom_id"], (
    served and answered["response"]["status_code"] == 200
  )


def _line(line: int, name: Any, code: int, body: Any) -> dict[str, Any]:
  # Of the line alone: the same refusal is the same line when a job goes on.
  digest = _digest(line, name)
  return {
    "id": f"batch_req_{digest}",
    "custom_id": name,
    "response": {"status_code": code, "request_id": digest, "body": body},
    "error": None,
  }


def _digest(line: int, name: Any) -> str:
  return hashlib.sha256(repr((line, name)).encode()).hexdigest()[:24]


def _present(given: dict[str, Any]) -> dict[str, Any]:
  return {k: v for k, v in given.items() if v is not None}
