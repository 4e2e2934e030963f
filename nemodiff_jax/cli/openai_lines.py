"""Lines of OpenAI's batch files, taken as they are and answered in their form.

A request is {"custom_id", "method", "url", "body"}; its answer {"id",
"custom_id", "response": {"status_code", "request_id", "body"}, "error"}. What
is refused has a status code of 400 and the error in the body, as OpenAI's own
files have it. https://platform.openai.com/docs/api-reference/batch
"""

import dataclasses
import hashlib
import time
from typing import Any

from nemodiff_jax.api import DecodeOutput
from nemodiff_jax.errors import UserError

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_LINE = ("custom_id", "method", "url", "body")
_SAME = ("temperature", "top_p", "seed", "stop")
_LIMITS = ("max_tokens", "max_completion_tokens")
_PROMPT = {CHAT: "messages", COMPLETIONS: "prompt"}


@dataclasses.dataclass(frozen=True)
class Request:
  """What the answer to a line needs of it.

  Attributes:
    url: CHAT or COMPLETIONS.
    model: the name that the line gives, if it does.
  """

  url: str
  model: str | None


def is_request(line: dict[str, Any]) -> bool:
  """Whether a line has the form of a batch file."""
  return "custom_id" in line or "body" in line


def read_request(line: dict[str, Any]) -> tuple[Request, dict[str, Any]]:
  """A line as a request, and as fields of a line of our own.

  A field that is null counts as absent.

  Raises:
    UserError: a field that is unknown, or that has no such value.
  """
  line = _present(line)
  _known("the line", line, _LINE)
  if line.get("method", "POST") != "POST":
    raise UserError(f"method should be POST, got {line['method']!r:.40}.")
  if not isinstance(line.get("body"), dict):
    raise UserError(f"body should be an object, got {line.get('body')!r:.40}.")
  body = _present(line["body"])
  url = line.get("url", CHAT if "messages" in body else COMPLETIONS)
  if url not in (CHAT, COMPLETIONS):
    raise UserError(f"url should be {CHAT} or {COMPLETIONS}, got {url!r:.60}.")
  limits = _LIMITS if url == CHAT else _LIMITS[:1]
  _known(f"body of {url}", body, ("model", _PROMPT[url], *limits, *_SAME))
  model = body.get("model")
  if model is not None and not isinstance(model, str):
    raise UserError(f"model should be a text, got {model!r:.40}.")
  # The form of log-probabilities is another; the flag is for our own lines.
  fields = {k: body[k] for k in _SAME if k in body} | {"logprobs": None}
  most = [body[k] for k in limits if k in body]
  if len(most) == 2 and most[0] != most[1]:
    raise UserError(f"{' and '.join(limits)} should be equal, got {most}.")
  if most:
    fields["max_new_tokens"] = most[0]
  return Request(url, model), fields | _prompt(body, url)


def answer(
  line: int, name: Any, request: Request, output: DecodeOutput, model: str
) -> dict[str, Any]:
  """The line that answers a request.

  Args:
    line: the request's number.
    name: its custom_id.
    request: from `read_request`.
    output: what was decoded.
    model: its name, for requests that give none.
  """
  if request.url == CHAT:
    message = {"role": "assistant", "content": output.text, "refusal": None}
    kind, prefix, said = "chat.completion", "chatcmpl", {"message": message}
  else:
    kind, prefix, said = "text_completion", "cmpl", {"text": output.text}
  body = {
    "id": f"{prefix}-{_digest(line, name)}",
    "object": kind,
    "created": int(time.time()),
    "model": request.model or model,
    "choices": [
      {
        "index": 0,
        **said,
        "logprobs": None,
        "finish_reason": output.finish_reason,
      }
    ],
    "usage": {
      "prompt_tokens": output.prompt_tokens,
      "completion_tokens": output.completion_tokens,
      "total_tokens": output.prompt_tokens + output.completion_tokens,
    },
  }
  return _line(line, name, 200, body)


def refusal(line: int, name: Any, kind: str, message: str) -> dict[str, Any]:
  """The line that says why a request was not served."""
  error = {
    "message": message,
    "type": "invalid_request_error",
    "param": None,
    "code": kind,
  }
  return _line(line, name, 400, {"error": error})


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


def _known(where: str, given: dict[str, Any], known: tuple[str, ...]) -> None:
  for name in given:
    if name not in known:
      raise UserError(
        f"{where}: {name!r:.40} is not served; known are {', '.join(known)}.",
        "unknown_field",
      )


def _prompt(body: dict[str, Any], url: str) -> dict[str, Any]:
  if url == CHAT:
    return {"messages": body.get("messages")}
  prompt = body.get("prompt")
  if isinstance(prompt, list) and len(prompt) == 1:
    if not isinstance(prompt[0], int):  # A list of one prompt.
      (prompt,) = prompt
  if isinstance(prompt, list):
    if any(not isinstance(i, int) for i in prompt):
      raise UserError("prompt should be one text, or one list of token ids.")
    return {"prompt_ids": prompt}
  return {"prompt": prompt}
