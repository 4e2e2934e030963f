"""The one door to decoding: replies, and traces of them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from nemodiff_jax import api
from nemodiff_jax.decode.config import DecodeConfig, RowSettings, check_prompt
from nemodiff_jax.decode.generate import stream_ids
from nemodiff_jax.decode.trace import trace_passes
from nemodiff_jax.errors import UserError
from nemodiff_jax.prompts import Prompt, encode_prompt, finish_row


def prepare(
  model: api.Model,
  prompts: Iterable[tuple[str, Prompt]],
  row: RowSettings,
  **variables: Any,
) -> list[list[int]]:
  """Ids of prompts with a name each; `variables` go to the chat template.

  Raises:
    UserError: one that the model cannot be asked.
  """
  row, found = finish_row(model.tokenizer, row), []
  for name, prompt in prompts:
    try:
      ids = encode_prompt(model.tokenizer, model.template, prompt, **variables)
      found.append(check_prompt(ids, row, model.config))
    except UserError as e:
      raise UserError(f"question {name!r}: {e}") from e
  return found


def decode(
  model: api.Model,
  setting: DecodeConfig,
  prompts: Sequence[Sequence[int]],
  row: RowSettings,
  batch_size: int,
) -> Iterator[api.DecodeOutput]:
  """The reply to each prompt, in order; batches change nothing."""
  row = finish_row(model.tokenizer, row)
  rows = [row] * len(prompts)
  return api.generate_rows(model, setting, prompts, rows, batch_size)


def reply_fields(output: api.DecodeOutput) -> dict[str, Any]:
  """What samples.jsonl holds of a reply; the counts have NVIDIA's names."""
  fields = {
    "text": output.text or "",
    "token_ids": output.token_ids,
    "finish_reason": output.finish_reason,
    "num_generated_tokens": output.completion_tokens,
    "nfe": output.nfe,
    "prompt_tokens": output.prompt_tokens,
  }
  if output.accepted is not None:
    fields["accepted"] = output.accepted
  return fields


def trace(
  model: api.Model,
  setting: DecodeConfig,
  prompt: Sequence[int],
  row: RowSettings,
) -> list[dict[str, Any]]:
  """Every pass over one prompt: see `decode.trace.trace_passes`."""
  row = finish_row(model.tokenizer, row)
  moments = stream_ids(
    model.module,
    model.weights,
    setting,
    [prompt],
    [row],
    attention=model.attention,
    tokenizer=model.tokenizer,
    traced=True,
  )
  return list(trace_passes(moments))
