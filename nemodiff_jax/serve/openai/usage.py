"""`usage`: tokens and passes of an answer."""

from collections.abc import Sequence
from typing import Any

from nemodiff_jax.serve.openai.choice import Choice
from nemodiff_jax.serve.openai.requests import Call


def usage(call: Call, choices: Sequence[Choice]) -> dict[str, Any]:
  """Tokens and passes so far; a prompt of several choices counts once.

  Extras inside of `usage` survive clients that put chunks together.
  """
  n = call.request.n
  prompts = sum(len(job.prompt) for job in call.jobs[::n])
  said = sum(len(c.ids) for c in choices)
  counts = [c.counts for c in choices]
  nfe = sum(c.nfe for c in counts)
  made: dict[str, Any] = {
    "prompt_tokens": prompts,
    "completion_tokens": said,
    "total_tokens": prompts + said,
    "prompt_tokens_details": {"cached_tokens": sum(c.reused for c in counts)},
    "nfe": nfe,
    "tokens_per_forward": said / nfe if nfe else None,
    "accepted_draft_tokens": sum(c.accepted for c in counts),
    "seed": call.seed,
  }
  details: dict[str, int] = {}
  if call.thinking is not None:
    details["reasoning_tokens"] = sum(c.reasoning_tokens for c in choices)
  predicted = call.jobs[0].prediction
  if predicted:
    accepted = counts[0].predicted
    details["accepted_prediction_tokens"] = accepted
    details["rejected_prediction_tokens"] = max(0, len(predicted) - accepted)
  if details:
    made["completion_tokens_details"] = details
  return made
