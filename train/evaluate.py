"""Decodes held-out questions with the model as it is, in every mode."""

import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from nemodiff_jax import api
from nemodiff_jax.decode.config import RowSettings, decode_config
from nemodiff_jax.decode.state import Weights
from nemodiff_jax.errors import UserError
from nemodiff_jax.io import jsonl
from nemodiff_jax.nn.lora import LoraLayer
from nemodiff_jax.nn.model import Params, Transformer
from train import arithmetic
from train.sources import family_shares
from train.stack import unstack_layers
from train.start import Start


@dataclasses.dataclass(frozen=True)
class Question:
  """A held-out question.

  Attributes:
    prompt: text or messages.
    answer: what the reply should end with, up to a full stop.
  """

  prompt: Any
  answer: str


def load_questions(c: ml_collections.ConfigDict) -> list[Question]:
  """The questions that config.eval names.

  Raises:
    UserError: a file or line that cannot be used.
  """
  if (shares := family_shares(c.source)) is not None:
    return [
      Question([{"role": "user", "content": question}], answer)
      for family in shares
      if family in arithmetic.HELD_OUT
      for question, _, answer in arithmetic.held_out(family, c.questions)
    ]
  path = Path(c.source).expanduser()
  try:
    with path.open("rb") as file:
      lines = list(itertools.islice(jsonl.read_lines(file), c.questions))
  except (OSError, UserError) as e:
    raise UserError(f"config.eval.source: {path} cannot be read ({e}).") from e
  if not lines:
    raise UserError(f"config.eval.source: {path} holds no question.")
  return [_question(path, line) for line in lines]


def _question(path: Path, line: jsonl.Line) -> Question:
  record = line.value
  prompt = record.get("messages") or record.get("prompt")
  if line.error is not None or not prompt or "answer" not in record:
    why = line.error or f"found {sorted(record)}"
    raise UserError(
      f"{path}:{line.number}: expected JSON with messages (or prompt) and"
      f" answer ({why})."
    )
  return Question(prompt, str(record["answer"]))


def decoding_model(
  start: Start, params: Params, lora: Params | None, scale: float
) -> api.Model:
  """A model that decodes with parameters in training.

  Args:
    start: config, tokenizer and template.
    params: layers stacked.
    lora: the drafter in training, or None.
    scale: of the LoRA, alpha / R.
  """
  layers = start.config.num_layers
  dtype = jnp.dtype(api.default_dtype())
  place = lambda tree: jax.tree.map(lambda x: x.astype(dtype), tree)
  drafter = None
  if lora is not None:
    a, b = lora["lora"]["a"], lora["lora"]["b"] * scale
    drafter = tuple(place(LoraLayer(a[i], b[i])) for i in range(layers))
  return api.Model(
    config=start.config,
    tokenizer=start.tokenizer,
    template=start.template,
    module=Transformer(start.config, dtype),
    weights=Weights(place(unstack_layers(params, layers)), drafter),
  )


def evaluate(
  model: api.Model, c: ml_collections.ConfigDict, questions: list[Question]
) -> tuple[dict[str, float], str]:
  """Accuracy and tokens per forward of each mode, and one reply as a sample."""
  row = RowSettings(max_new_tokens=c.max_new_tokens)
  prompts = [api.prepare(model, q.prompt, row) for q in questions]
  metrics, sample = {}, ""
  for mode in c.modes:
    config = decode_config(model.config, mode)
    rows = [row] * len(prompts)
    outs = list(api.generate_rows(model, config, prompts, rows, 16))
    right = [
      ends_with(out.text or "", q.answer)
      for out, q in zip(outs, questions, strict=True)
    ]
    metrics[f"eval/{mode}_accuracy"] = sum(right) / len(right)
    metrics[f"eval/{mode}_tokens_per_forward"] = sum(
      out.completion_tokens for out in outs
    ) / max(1, sum(out.nfe for out in outs))
    sample = sample or f"{questions[0].prompt!r} -> {outs[0].text!r}"
  return metrics, sample


def ends_with(text: str, answer: str) -> bool:
  """Whether a reply ends with the answer, as a whole word, and a full stop."""
  return bool(
    re.search(rf"(?<![\w.:-]){re.escape(answer)}\.?\s*$", text.rstrip())
  )
