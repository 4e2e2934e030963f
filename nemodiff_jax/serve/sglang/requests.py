"""SGLang's /generate: requests as jobs."""

import dataclasses
import uuid
from collections.abc import Sequence
from typing import Any

from nemodiff_jax.decode.config import RowSettings
from nemodiff_jax.serve.contract import Job
from nemodiff_jax.serve.errors import Refusal
from nemodiff_jax.serve.protocol.sglang import GenerateRequest, SamplingParams
from nemodiff_jax.serve.protocol.wire import MAX_PROMPTS
from nemodiff_jax.serve.rows import (
  adjustments,
  draw_seed,
  finish,
  make_jobs,
  room,
  shared_settings,
  text_ids,
  with_grammar,
)
from nemodiff_jax.serve.served import Served
from nemodiff_jax.serve.structured import Spec

_GREEDY = 1e-6  # A temperature below it is 0.


@dataclasses.dataclass(frozen=True)
class Wanted:
  """What a row is asked to tell.

  Attributes:
    rid: its name.
    job: as the engine has it.
    start: first position of the prompt to score; -1: none.
    scored: log-probabilities are wanted.
    top: of the likeliest tokens.
    texts: tokens have their texts beside them.
    stop_shown: a stop text stays.
    prompt_ids: the prompt's ids are given back.
  """

  rid: str
  job: Job
  start: int
  scored: bool
  top: int
  texts: bool
  stop_shown: bool
  prompt_ids: bool


def read_generate(
  served: Served, request: GenerateRequest
) -> tuple[list[Wanted], bool]:
  """The rows of a request, prompt by prompt, and whether it is a list.

  Raises:
    UserError: what cannot be served; a Refusal names the field.
  """
  prompts, many = _prompts(served, request)
  count = len(prompts)
  params = _each("sampling_params", request.sampling_params, count)
  n = max(p.n for p in params)
  if any(p.n != n for p in params):
    raise Refusal("sampling_params: n should be the same in all.", "n")
  if count * n > MAX_PROMPTS:
    raise Refusal(f"n times the prompts should be at most {MAX_PROMPTS}.", "n")
  scored = _each("return_logprob", request.return_logprob, count)
  starts = _each("logprob_start_len", request.logprob_start_len, count)
  tops = _each("top_logprobs_num", request.top_logprobs_num, count)
  salts = _each("extra_key", request.extra_key or "", count)
  names = _rids(request, count, n)
  rows = []
  for i, ids in enumerate(prompts):
    start = starts[i] if scored[i] else -1
    if start > len(ids):
      raise Refusal(
        f"logprob_start_len should be at most {len(ids)}, the tokens of the"
        f" prompt, got {start}.",
        "logprob_start_len",
      )
    top = tops[i] if scored[i] else None
    own = params[i]
    jobs = _jobs(served, request, ids, own, top, start, salts[i])
    rows += [
      Wanted(
        names[i * n + k],
        job,
        start,
        scored[i],
        tops[i],
        request.return_text_in_logprobs,
        own.no_stop_trim,
        request.return_prompt_token_ids,
      )
      for k, job in enumerate(jobs)
    ]
  return rows, many or n > 1


def _jobs(
  served: Served,
  request: GenerateRequest,
  ids: list[int],
  own: SamplingParams,
  top: int | None,
  start: int,
  salt: str,
) -> list[Job]:
  most = room(served, ids, own.max_new_tokens, "max_new_tokens")
  row = RowSettings(
    max_new_tokens=max(1, most),
    temperature=0.0 if own.temperature < _GREEDY else own.temperature,
    seed=draw_seed(own.sampling_seed),
    logprobs=top,
    max_thinking_tokens=request.max_thinking_tokens,
    **shared_settings(own),
  )
  if start >= 0:
    served.need("prompt_logprobs", "logprob_start_len")
  adjust = adjustments(served, own, served.mode, (), own.min_new_tokens)
  jobs = make_jobs(
    served,
    ids,
    finish(served, row, "max_thinking_tokens"),
    own.n,
    score_only=most == 0,
    prompt_logprobs=(start, top or 0) if start >= 0 else None,
    adjust=adjust,
    stream=request.stream,
    priority=request.priority,
    cache_salt=salt,
  )
  return with_grammar(served, jobs, _spec(own), served.mode)


def structured(request: GenerateRequest) -> bool:
  """Whether reading the request compiles a grammar."""
  given: Any = request.sampling_params
  params = given if isinstance(given, list) else [given]
  return any(_spec(p) is not None for p in params)


def _spec(own: SamplingParams) -> Spec | None:
  kinds = {"json_schema": "json", "regex": "regex", "ebnf": "grammar"}
  found = [
    Spec(field, kind, getattr(own, field))
    for field, kind in kinds.items()
    if getattr(own, field) is not None
  ]
  if len(found) > 1:
    raise Refusal(
      f"{found[0].field} and {found[1].field} exclude each other.",
      found[1].field,
    )
  return found[0] if found else None


def _prompts(
  served: Served, request: GenerateRequest
) -> tuple[list[list[int]], bool]:
  """Ids of every prompt, and whether they came as a list."""
  texts: Any = request.text
  given: Any = request.input_ids
  if (texts is None) == (given is None):
    raise Refusal("expected one of text and input_ids.", "text")
  if texts is not None:
    many = isinstance(texts, list)
    texts = texts if many else [texts]
    _some("text", texts)
    return [text_ids(served, t) for t in texts], many
  many = bool(given) and isinstance(given[0], list)
  _some("input_ids", given)
  return (given if many else [given]), many


def _some(name: str, given: Sequence[Any]) -> None:
  if not given:
    raise Refusal(f"{name} should hold at least one prompt.", name)


def _each(name: str, given: Any, count: int) -> Sequence[Any]:
  """A value for every prompt."""
  if not isinstance(given, list):
    return [given] * count
  if len(given) != count:
    raise Refusal(
      f"{name} should have an entry per prompt, {count}, got {len(given)}.",
      name,
    )
  return given


def _rids(request: GenerateRequest, count: int, n: int) -> list[str]:
  total, given = count * n, request.rid
  if given is None:
    return [uuid.uuid4().hex for _ in range(total)]
  if isinstance(given, str):
    return [given] if total == 1 else [f"{given}_{i}" for i in range(total)]
  if len(given) == count:
    many = [r if n == 1 else f"{r}_{k}" for r in given for k in range(n)]
    return many
  raise Refusal(
    f"rid should be a text, or a list of {count}, got {len(given)}.", "rid"
  )
