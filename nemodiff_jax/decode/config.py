"""What a caller can ask for: settings of the run, and settings of a row."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from nemodiff_jax.decode import modes
from nemodiff_jax.decode.checks import check_passes, number, whole
from nemodiff_jax.errors import UserError
from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.text.stream import check_stops

MODES = tuple(modes.MODES)
DEFAULT_THRESHOLD = 0.9
MAX_LOGPROBS = 20
MAX_TEMPERATURE = 1000  # Beyond it every token is equally likely.
MAX_POSITIONS = 2**31 - 1  # Positions are int32.
AUTO = "auto"
NARROW_WIDTHS = 1, 8, 16  # That 'auto' has beside the block size.


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
  """How a run decodes.

  Attributes:
    mode: one of MODES.
    block_length: C, tokens per block or draft.
    threshold: diffusion: confidence at which a slot is revealed; None: only
      the schedule of steps_per_block decides.
    steps_per_block: diffusion: most denoising passes per block; None: C.
    draft_threshold: linear_spec: draft passes repeat until every slot reaches
      this confidence; 0: one draft pass.
    widths: linear_spec: block lengths of which an engine chooses one for each
      cycle, by what it yields; block_length is the largest. None: no choice.
  """

  mode: str = "ar"
  block_length: int = 32
  threshold: float | None = DEFAULT_THRESHOLD
  steps_per_block: int | None = None
  draft_threshold: float = 0.0
  widths: tuple[int, ...] | None = None

  def __post_init__(self):
    if self.mode not in MODES:
      raise UserError(f"mode should be one of {MODES}, got {self.mode!r}.")
    whole("block_length", self.block_length, 1)
    check_passes(self.threshold, self.steps_per_block, self.draft_threshold)

  @property
  def slots(self) -> int:
    """C as the mode uses it: 1 where it has no blocks."""
    return self.block_length if modes.MODES[self.mode].uses_blocks else 1


def decode_config(
  model: ModelConfig,
  mode: str | None = None,
  *,
  block_length: int | str | None = None,
  threshold: float | Literal["auto"] | None = "auto",
  steps_per_block: int | None = None,
  draft_threshold: float = 0.0,
) -> DecodeConfig:
  """Fills in the defaults that depend on the checkpoint and on each other.

  mode defaults to linear_spec, and ar where there is no mask token;
  block_length to 'auto' where no mode is named, else to the checkpoint's block
  size (quadratic_spec: 16); threshold to 0.9 unless steps_per_block is given,
  then to None.

  Raises:
    UserError: a value out of range, or a mode this checkpoint cannot decode.
  """
  if mode is None:
    mode = "ar" if model.mask_id is None else "linear_spec"
    block_length = AUTO if block_length is None else block_length
  known = modes.MODES.get(mode)
  if known is not None and known.masked and model.mask_id is None:
    raise UserError(
      f"mode {mode!r} needs a mask token, but this checkpoint's config.json"
      " has no mask_token_id. Use mode 'ar', or a tri-mode checkpoint."
    )
  widths: tuple[int, ...] | None = None
  if block_length == AUTO:
    if mode not in ("ar", "linear_spec"):
      raise UserError(
        f"block_length=auto is for linear_spec, but the mode is {mode}; give a"
        " number."
      )
    block_length = model.block_size
    if mode == "linear_spec":
      narrow = {w for w in NARROW_WIDTHS if w < block_length}
      widths = (*sorted(narrow), block_length)
  elif isinstance(block_length, str):
    raise UserError(
      f"block_length should be a whole number or auto, got {block_length!r}."
    )
  elif block_length is None:
    own = known.default_block if known else None
    block_length = own or model.block_size
  if threshold == "auto":
    threshold = DEFAULT_THRESHOLD if steps_per_block is None else None
  return DecodeConfig(
    mode, block_length, threshold, steps_per_block, draft_threshold, widths
  )


@dataclasses.dataclass(frozen=True)
class RowSettings:
  """What one row asks for.

  Attributes:
    max_new_tokens: most tokens to generate; exact unless the row ends.
    temperature: 0 is greedy.
    top_k: keep the k most likely tokens; 0 keeps all.
    top_p: then keep the smallest set whose probability reaches top_p.
    min_p: then drop tokens less likely than min_p times the best.
    seed: of the noise; with the position it alone decides the noise.
    stop_token_ids: ids that end the row as an EOS does.
    ignore_eos: do not end at an EOS.
    stop: texts that end the row when they appear; a text, or a list of them.
    logprobs: return the log-probability of every token, and of this many of
      the likeliest; None returns none.
    max_thinking_tokens: after so many tokens the end-of-thinking token is
      forced, if it has not come before; None: no budget.
    end_think_token_id: that token; None: the tokenizer's </think>.
    start_think_token_id: opens thinking; None: the tokenizer's <think>. A
      prompt that closed thinking, and did not open it again, has no budget.
    threshold: as in DecodeConfig; 'run': the run's, or none where the row
      sets steps_per_block.
    steps_per_block: as in DecodeConfig; None: the run's.
    draft_threshold: as in DecodeConfig; None: the run's.
    following: ids that stand behind the max_new_tokens, where they are known;
      diffusion sees them as far as its block reaches. The mask id is one that
      is not known.
  """

  max_new_tokens: int = 128
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  seed: int = 0
  stop_token_ids: Sequence[int] = ()
  ignore_eos: bool = False
  stop: str | Sequence[str] = ()
  logprobs: int | None = None
  max_thinking_tokens: int | None = None
  end_think_token_id: int | None = None
  start_think_token_id: int | None = None
  threshold: float | Literal["run"] | None = "run"
  steps_per_block: int | None = None
  draft_threshold: float | None = None
  following: Sequence[int] = ()

  def __post_init__(self):
    threshold = None if self.threshold == "run" else self.threshold
    check_passes(threshold, self.steps_per_block, self.draft_threshold or 0)
    whole("max_new_tokens", self.max_new_tokens, 1)
    whole("top_k", self.top_k, 0)
    whole("seed", self.seed, 0)
    if self.seed >= 2**64:
      raise UserError(f"seed should be below 2**64, got {self.seed}.")
    for name in ("temperature", "top_p", "min_p"):
      number(name, getattr(self, name))
    if not 0 <= self.temperature <= MAX_TEMPERATURE:
      raise UserError(
        f"temperature should be 0 or positive, at most {MAX_TEMPERATURE}, got"
        f" {self.temperature}."
      )
    if not 0 < self.top_p <= 1:
      raise UserError(f"top_p should lie in (0, 1], got {self.top_p}.")
    if not 0 <= self.min_p <= 1:
      raise UserError(f"min_p should lie in [0, 1], got {self.min_p}.")
    if not isinstance(self.ignore_eos, bool):
      raise UserError(
        f"ignore_eos should be true or false, got {self.ignore_eos!r}."
      )
    for name in ("stop_token_ids", "following"):
      given = getattr(self, name)
      if isinstance(given, str) or not isinstance(given, Sequence):
        raise UserError(f"{name} should be a list of token ids, got {given!r}.")
      for token in given:
        whole(f"each of {name}", token, 0)
      object.__setattr__(self, name, tuple(given))
    object.__setattr__(self, "stop", check_stops(self.stop))
    for name in (
      "logprobs",
      "max_thinking_tokens",
      "end_think_token_id",
      "start_think_token_id",
    ):
      if getattr(self, name) is not None:
        whole(name, getattr(self, name), 0)
    if (self.max_thinking_tokens or 0) > MAX_POSITIONS:
      raise UserError(
        f"max_thinking_tokens should be at most {MAX_POSITIONS}, got"
        f" {self.max_thinking_tokens}."
      )
    if self.logprobs is not None and self.logprobs > MAX_LOGPROBS:
      raise UserError(
        f"logprobs should be at most {MAX_LOGPROBS}, got {self.logprobs}."
      )


def check_mode(config: DecodeConfig, row: RowSettings) -> None:
  """Raises a UserError if the row sets what its mode does not have."""
  own = modes.MODES[config.mode].settings
  default = RowSettings()
  for name in (
    "threshold", "steps_per_block", "draft_threshold", "following"
  ):  # fmt: skip
    if name not in own and getattr(row, name) != getattr(default, name):
      has = next(m.name for m in modes.MODES.values() if name in m.settings)
      raise UserError(
        f"{name} is a setting of {has}, but the mode is {config.mode}."
      )


def row_config(config: DecodeConfig, row: RowSettings) -> DecodeConfig:
  """The run's config with what the row sets of it."""
  threshold, steps = row.threshold, row.steps_per_block
  if threshold == "run":
    threshold = config.threshold if steps is None else None
  drafts = row.draft_threshold
  return dataclasses.replace(
    config,
    threshold=threshold,
    steps_per_block=config.steps_per_block if steps is None else steps,
    draft_threshold=config.draft_threshold if drafts is None else drafts,
  )


ROW_FIELDS = tuple(f.name for f in dataclasses.fields(RowSettings))
RUN_FIELDS = "mode", "block_length"  # The same for all rows of a run.


def check_prompt(
  ids: Sequence[Any],
  row: RowSettings,
  model: ModelConfig,
  max_length: int | None = None,
) -> list[int]:
  """The prompt as a list of ints, if this model can continue it.

  Raises:
    UserError: an empty prompt, an id that is not one, the mask id, or more
      positions than the model (or max_length) has.
  """
  if isinstance(ids, (str, bytes)) or not hasattr(ids, "__len__"):
    raise UserError(
      f"prompt_ids should be a list of token ids, got {ids!r}.", "bad_ids"
    )
  if not len(ids):
    raise UserError(
      "the prompt is empty; it should hold at least one token.", "empty_prompt"
    )
  ids = [i.item() if getattr(i, "ndim", None) == 0 else i for i in ids]
  named = {
    "stop_token_ids": row.stop_token_ids,
    "end_think_token_id": (row.end_think_token_id,),
    "start_think_token_id": (row.start_think_token_id,),
  }
  asked = [i for ids in named.values() for i in ids if i is not None]
  asked += row.following
  for i in (*ids, *asked):
    if not isinstance(i, int) or isinstance(i, bool):
      raise UserError(f"token ids should be integers, got {i!r}.", "bad_ids")
    if not 0 <= i < model.vocab_size:
      raise UserError(
        f"token ids should lie in [0, {model.vocab_size}), got {i}.", "bad_ids"
      )
  if model.mask_id in ids:
    raise UserError(
      f"the prompt holds the mask id {model.mask_id} at place"
      f" {ids.index(model.mask_id)}; masks stand for text to be generated and"
      " cannot be part of a prompt.",
      "bad_ids",
    )
  for name, tokens in named.items():
    if model.mask_id is not None and model.mask_id in tokens:
      raise UserError(
        f"{name} should not be the mask id {model.mask_id}, which is never"
        " generated.",
        "bad_ids",
      )
  limit = min(model.max_positions, max_length or model.max_positions)
  if len(ids) + row.max_new_tokens > limit:
    raise UserError(
      f"prompt ({len(ids)} tokens) + max_new_tokens ({row.max_new_tokens})"
      f" should be at most {limit}"
      f" ({'max_length' if limit == max_length else 'the model'}'s limit);"
      " shorten one of them.",
      "too_long",
    )
  return ids
