"""Settings of requests as rows of the engine; both protocols use them."""

import dataclasses
import secrets
from collections.abc import Sequence
from typing import Any

from nemodiff_jax.decode.config import RowSettings, check_prompt
from nemodiff_jax.prompts import END_THINK, finish_row
from nemodiff_jax.serve.contract import Adjustments, Job
from nemodiff_jax.serve.errors import Refusal
from nemodiff_jax.serve.served import Served
from nemodiff_jax.serve.structured import Spec

_SEEDS = 2**64
_DRAWN = 53  # Bits: a number that every JSON reader keeps.


@dataclasses.dataclass(frozen=True)
class Lane:
  """How a request decodes: fields of a Job; None: the lane's own."""

  mode: str | None = None
  block_length: int | str | None = None
  threshold: float | None = None
  steps_per_block: int | None = None
  draft_threshold: float | None = None


def make_jobs(
  served: Served,
  prompt: Sequence[int],
  row: RowSettings,
  n: int,
  **more: Any,
) -> list[Job]:
  """N rows of one prompt: the i-th has the seed of the first, plus i."""
  rows = [
    dataclasses.replace(row, seed=(row.seed + i) % _SEEDS) for i in range(n)
  ]
  for token in row.stop_token_ids:
    _check_id(served, token, "stop_token_ids")
  ids = check_prompt(prompt, row, served.config, served.max_length)
  return [Job(ids, r, **more) for r in rows]


def with_grammar(
  served: Served,
  jobs: list[Job],
  spec: Spec | None,
  mode: str,
  after: int | None = None,
) -> list[Job]:
  """The jobs with what their outputs have to match; None: nothing.

  Args:
    served: the model.
    jobs: rows of one prompt; each gets a matcher of its own.
    spec: what to match.
    mode: that they decode in.
    after: the token that the grammar begins behind; None: at once.

  Raises:
    Refusal: what is wrong with the grammar, or a mode that can follow none.
  """
  if spec is None:
    return jobs
  served.need("grammar", spec.field)
  if mode == "diffusion":
    raise Refusal(
      f"{spec.field}: diffusion fills slots in any order and cannot follow a"
      " grammar; use another mode.",
      spec.field,
    )
  match = served.grammars.matcher
  return [dataclasses.replace(j, grammar=match(spec, after)) for j in jobs]


def text_ids(served: Served, text: str, special: bool = True) -> list[int]:
  """Ids of a text; `special`: with a BOS, where the tokenizer's rule has one.

  Raises:
    UserError: it is empty, or cannot be encoded.
  """
  tokenizer = served.text_tokenizer()
  if not text:
    raise Refusal("prompt should hold at least one character.", "prompt")
  return tokenizer.encode(text) if special else tokenizer.encode_rendered(text)


def shared_settings(asked: Any) -> dict[str, Any]:
  """Fields of RowSettings that both protocols call by the same names."""
  return {
    "top_k": max(asked.top_k, 0),
    "top_p": asked.top_p,
    "min_p": asked.min_p,
    "stop_token_ids": asked.stop_token_ids,
    "ignore_eos": asked.ignore_eos,
    "stop": asked.stop or (),
  }


def draw_seed(given: int | None) -> int:
  """The seed of a request: its own as 64 bits, or a fresh one."""
  return secrets.randbits(_DRAWN) if given is None else given % _SEEDS


def finish(served: Served, row: RowSettings, budget: str) -> RowSettings:
  """The row with what it needs of the tokenizer.

  Raises:
    Refusal: it has a thinking budget, by the name `budget`, and the tokenizer
      no end of thinking.
  """
  tokenizer = served.tokenizer
  knows = tokenizer is not None and tokenizer.id_of(END_THINK) is not None
  if row.max_thinking_tokens is not None and not knows:
    raise Refusal(
      f"{budget} needs the token {END_THINK!r}, which this checkpoint's"
      " tokenizer lacks.",
      budget,
    )
  return finish_row(tokenizer, row)


def room(
  served: Served, prompt: Sequence[int], wanted: int | None, field: str
) -> int:
  """Most new tokens after a prompt; None wanted: the rest of the window.

  Raises:
    Refusal: the prompt and what is wanted of it exceed the window.
  """
  most = served.max_length - len(prompt)
  asked = max(1, most) if wanted is None else wanted
  if asked > most:
    raise Refusal(
      f"This model's maximum context length is {served.max_length} tokens."
      f" However, you requested {len(prompt) + asked} tokens ({len(prompt)} in"
      f" the prompt, {asked} in the completion). Please reduce the length of"
      " the prompt or of the completion.",
      field,
    )
  return asked


def check_lane(served: Served, lane: Lane) -> Lane:
  """The lane, if the server has it.

  Raises:
    Refusal: a mode or a width that is not there; the message names those.
  """
  mode = lane.mode or served.mode
  if mode not in served.modes:
    raise Refusal(
      f"mode should be one of {', '.join(served.modes)}, got {mode!r}.", "mode"
    )
  block = lane.block_length
  if block is not None and mode != "ar" and block not in served.widths[mode]:
    widths = ", ".join(map(str, served.widths[mode]))
    raise Refusal(
      f"block_length of {mode} should be one of {widths}, got {block}.",
      "block_length",
    )
  for name in ("threshold", "steps_per_block"):
    if getattr(lane, name) is not None and mode != "diffusion":
      raise Refusal(f"{name} is for diffusion; the mode is {mode}.", name)
  if lane.draft_threshold is not None and mode != "linear_spec":
    raise Refusal(
      f"draft_threshold is for linear_spec; the mode is {mode}.",
      "draft_threshold",
    )
  return lane


def adjustments(
  served: Served, request: Any, mode: str, words: Sequence[str], least: int
) -> Adjustments | None:
  """The changes that a request makes to the logits; None: none.

  Args:
    served: the model.
    request: has logit_bias, the three penalties and maybe allowed_token_ids.
    mode: that it decodes in.
    words: that are not to be said.
    least: tokens before any may end the row.

  Raises:
    Refusal: ids out of range, or what this mode does not have.
  """
  allowed = getattr(request, "allowed_token_ids", None)
  if allowed is not None and not allowed:
    raise Refusal("allowed_token_ids should hold an id.", "allowed_token_ids")
  bias = _bias(served, request.logit_bias or {})
  for token in allowed or ():
    _check_id(served, token, "allowed_token_ids")
  made = Adjustments(
    bias,
    request.presence_penalty,
    request.frequency_penalty,
    request.repetition_penalty,
    allowed,
    tuple(_words(served, words)),
    least,
  )
  if mode == "diffusion":
    for name in ("presence", "frequency", "repetition"):
      field, none = f"{name}_penalty", float(name == "repetition")
      if getattr(made, field) != none:
        raise Refusal(
          f"{field}: diffusion has no order of tokens to count; use another"
          " mode.",
          field,
        )
  if made == Adjustments():
    return None
  changed = next(
    f.name
    for f in dataclasses.fields(made)
    if getattr(made, f.name) != getattr(Adjustments(), f.name)
  )
  served.need("adjust", changed)
  return made


def _bias(served: Served, given: dict[str, float]) -> dict[int, float]:
  bias = {}
  for name, value in given.items():
    if not name.isascii() or not name.isdigit():
      raise Refusal(
        f"logit_bias should have token ids as keys, got {name[:40]!r}.",
        "logit_bias",
      )
    token = int(name[:12])
    _check_id(served, token, "logit_bias")
    bias[token] = value
  return bias


def _check_id(served: Served, token: int, field: str) -> None:
  size = served.config.vocab_size
  if not 0 <= token < size:
    raise Refusal(
      f"{field}: token ids should lie in [0, {size}), got {token}.", field
    )


def _words(served: Served, words: Sequence[str]) -> list[list[int]]:
  """Ids of each word, at the start of a text and after a space."""
  if not words:
    return []
  encode = served.text_tokenizer().encode_rendered
  both = [encode(w) for word in words for w in (word, " " + word.lstrip())]
  return [ids for i, ids in enumerate(both) if ids and ids not in both[:i]]
