"""Requests of OpenAI's protocol as jobs, and how they want to be answered."""

import dataclasses
import uuid
from collections.abc import Sequence
from typing import Any

from nemodiff_jax.decode.config import RowSettings
from nemodiff_jax.errors import UserError
from nemodiff_jax.prompts import END_THINK
from nemodiff_jax.serve.contract import Job
from nemodiff_jax.serve.errors import Refusal
from nemodiff_jax.serve.openai import formats, tools
from nemodiff_jax.serve.openai.prompting import opens_thinking, render
from nemodiff_jax.serve.protocol.openai import ChatRequest, CompletionRequest
from nemodiff_jax.serve.protocol.sampling import Sampling
from nemodiff_jax.serve.rows import (
  Lane,
  adjustments,
  check_lane,
  draw_seed,
  finish,
  make_jobs,
  room,
  shared_settings,
  text_ids,
  with_grammar,
)
from nemodiff_jax.serve.served import Served
from nemodiff_jax.text.holes import inner_ids

_ALGORITHMS = {"nemotron": "diffusion", "ar_native": "ar"}
_COMPLETION_TOKENS = 16


@dataclasses.dataclass(frozen=True)
class Call:
  """A request, read.

  Attributes:
    request: as it came.
    id: of the answer.
    jobs: one per choice, prompt by prompt.
    echoes: text in front of each choice.
    thinking: whether the choices begin inside of reasoning; None: reasoning
      is not looked for.
    calls: how tool calls are written; None: they are not looked for.
    seed: of the first choice.
  """

  request: Any
  id: str
  jobs: list[Job]
  echoes: list[str]
  seed: int
  thinking: bool | None = None
  calls: str | None = None


def read_chat(served: Served, request: ChatRequest) -> Call:
  """A chat request as one job per choice.

  Raises:
    UserError: what cannot be served; a Refusal names the field.
  """
  _check(served, request)
  _check_chat(request)
  text = render(served, request)
  prompt = _truncated(request, served.text_tokenizer().encode_rendered(text))
  field, wanted = _limit(request)
  if wanted == 0:
    raise Refusal(f"{field} should be at least 1, got 0.", field)
  row = _row(served, request, room(served, prompt, wanted, field))
  top = (request.top_logprobs or 0) if request.logprobs else None
  row = dataclasses.replace(row, logprobs=top)
  calls = tools.form(served.template, request)
  predicted = _prediction(served, request)
  thinking = opens_thinking(text) if served.thinks else None
  jobs = _jobs(
    served, request, prompt, row, thinking, calls, prediction=predicted
  )
  last = str(request.messages[-1].get("content"))
  echo = last if request.echo and request.continue_final_message else ""
  ident = f"chatcmpl-{request.request_id or uuid.uuid4().hex}"
  return Call(
    request, ident, jobs, [echo] * request.n, row.seed, thinking, calls
  )


def read_completion(served: Served, request: CompletionRequest) -> Call:
  """A completion request as one job per prompt and choice.

  Raises:
    UserError: as `read_chat`.
  """
  _check(served, request)
  if request.best_of not in (None, request.n):
    raise Refusal("best_of should be n: all choices are given back.", "best_of")
  jobs, echoes = [], []
  request, following = _infilling(served, request)
  seed = draw_seed(request.seed)
  for prompt in _prompts(served, request):
    ids = _truncated(request, prompt)
    wanted = request.max_tokens
    wanted = _COMPLETION_TOKENS if wanted is None else wanted
    row = _row(served, request, max(1, room(served, ids, wanted, "max_tokens")))
    row = dataclasses.replace(
      row, logprobs=request.logprobs, seed=seed, following=following
    )
    score = request.logprobs if request.echo else request.prompt_logprobs
    if wanted == 0 and score is None and not request.echo:
      raise Refusal(
        "max_tokens should be at least 1 without echo.", "max_tokens"
      )
    jobs += _jobs(
      served,
      request,
      ids,
      row,
      None,
      None,
      score_only=wanted == 0,
      prompt_logprobs=None if score is None else (0, score),
    )
    shown = served.text_tokenizer().decode(ids) if request.echo else ""
    echoes += [shown] * request.n
  ident = f"cmpl-{request.request_id or uuid.uuid4().hex}"
  return Call(request, ident, jobs, echoes, seed)


def _infilling(
  served: Served, request: CompletionRequest
) -> tuple[CompletionRequest, list[int]]:
  """The request as infilling decodes it, and what stands behind its hole.

  Raises:
    Refusal: another mode is asked for, or the server has no diffusion; or the
      suffix holds the mask token.
  """
  if not request.suffix:
    return request, []
  mode = _lane(request).mode
  if mode not in (None, "diffusion"):
    raise Refusal(f"suffix is for diffusion; the mode is {mode}.", "suffix")
  if "diffusion" not in served.modes:
    raise Refusal("suffix needs diffusion, which is not served.", "suffix")
  tokenizer, mask = served.text_tokenizer(), served.config.mask_id
  try:
    ids = inner_ids(tokenizer, request.suffix, mask)
  except UserError as e:
    raise Refusal(f"suffix: {e}", "suffix") from e
  least = max(1, request.min_tokens)
  own = {"mode": "diffusion", "min_tokens": least}
  return request.model_copy(update=own), ids


def _jobs(
  served: Served,
  request: Sampling,
  prompt: Sequence[int],
  row: RowSettings,
  thinking: bool | None,
  calls: str | None,
  **more: Any,
) -> list[Job]:
  lane = check_lane(served, _lane(request))
  mode = lane.mode or served.mode
  adjust = adjustments(
    served, request, mode, request.bad_words, request.min_tokens
  )
  spec = formats.asked(request, calls)
  if more.get("prompt_logprobs") is not None:
    served.need("prompt_logprobs", "prompt_logprobs")
  jobs = make_jobs(
    served,
    prompt,
    row,
    request.n,
    adjust=adjust,
    stream=request.stream,
    passes=_watches(request),
    priority=request.priority,
    cache_salt=request.cache_salt,
    **dataclasses.asdict(lane),
    **more,
  )
  end = served.text_tokenizer().id_of(END_THINK) if thinking else None
  return with_grammar(served, jobs, spec, mode, end)


def _check(served: Served, request: Sampling) -> None:
  """What no type can say, and holds for both kinds."""
  served.check_name(request.model)
  if request.stream_options is not None and not request.stream:
    raise Refusal("stream_options needs stream.", "stream_options")
  if request.prompt_logprobs is not None and request.stream:
    raise Refusal("prompt_logprobs is not for a stream.", "prompt_logprobs")


def _watches(request: Sampling) -> bool:
  """Whether the stream tells what each pass did."""
  options = request.stream_options
  return options is not None and options.include_passes


def _check_chat(request: ChatRequest) -> None:
  if request.add_special_tokens:
    raise Refusal(
      "add_special_tokens is not for messages: their template writes a BOS"
      " where there is one.",
      "add_special_tokens",
    )
  if request.top_logprobs is not None and not request.logprobs:
    raise Refusal("top_logprobs needs logprobs.", "top_logprobs")
  if request.echo and not request.continue_final_message:
    raise Refusal("echo needs continue_final_message in a chat.", "echo")
  tools.check(request)


def _limit(request: ChatRequest) -> tuple[str, int | None]:
  both = (request.max_tokens, request.max_completion_tokens)
  if None not in both and both[0] != both[1]:
    raise Refusal(
      "max_tokens and max_completion_tokens should be equal, got"
      f" {both[0]} and {both[1]}.",
      "max_completion_tokens",
    )
  if request.max_completion_tokens is not None:
    return "max_completion_tokens", request.max_completion_tokens
  return "max_tokens", request.max_tokens


def _row(served: Served, request: Sampling, most: int) -> RowSettings:
  field = "thinking_token_budget"
  budget = request.thinking_token_budget
  if budget is None:
    field, budget = "max_thinking_tokens", request.max_thinking_tokens
  row = RowSettings(
    max_new_tokens=most,
    temperature=request.temperature,
    seed=draw_seed(request.seed),
    max_thinking_tokens=budget,
    **shared_settings(request),
  )
  return finish(served, row, field)


def _lane(request: Sampling) -> Lane:
  named = _ALGORITHMS.get(request.generation_algorithm or "")
  if request.linear_speculation:
    named = "linear_spec"
  if request.mode and named and request.mode != named:
    raise Refusal(f"mode: {request.mode} and {named} are asked for.", "mode")
  return Lane(
    request.mode or named,
    request.block_length,
    request.threshold,
    request.steps_per_block,
    request.draft_threshold,
  )


def _prompts(served: Served, request: CompletionRequest) -> list[list[int]]:
  given: Any = request.prompt
  if isinstance(given, str) or (given and isinstance(given[0], int)):
    given = [given]
  if not given:
    raise Refusal("prompt should hold at least one prompt.", "prompt")
  if len(given) * request.n > 1024:
    raise Refusal("prompt: n times the prompts should be at most 1024.", "n")
  special = request.add_special_tokens is not False
  return [
    text_ids(served, p, special) if isinstance(p, str) else p for p in given
  ]


def _truncated(request: Sampling, prompt: list[int]) -> list[int]:
  return prompt[-(request.truncate_prompt_tokens or len(prompt)) :]


def _prediction(served: Served, request: ChatRequest) -> list[int]:
  if request.prediction is None:
    return []
  served.need("prediction", "prediction")
  for name, other in (("n", request.n > 1), ("logprobs", request.logprobs)):
    if other:
      raise Refusal(f"prediction is not for {name}.", "prediction")
  if (request.mode or served.mode) == "diffusion":
    raise Refusal("prediction is not for diffusion.", "prediction")
  content = request.prediction.content
  if not isinstance(content, str):
    content = "".join(part.text for part in content)
  return served.text_tokenizer().encode_rendered(content)
