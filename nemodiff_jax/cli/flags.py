"""Flags shared by the commands, and what the library makes of them."""

import dataclasses
from typing import Any, Literal

from absl import flags

from nemodiff_jax import api
from nemodiff_jax.decode.config import (
  AUTO,
  MODES,
  DecodeConfig,
  RowSettings,
  decode_config,
)
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import Checkpoint, open_checkpoint
from nemodiff_jax.io.generation import FILE as GENERATION_FILE
from nemodiff_jax.io.generation import sampling_defaults
from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.nn.quantize import SCHEMES
from nemodiff_jax.nn.sharding import make_mesh
from pallas_kernels.range_attention.dispatch import IMPLEMENTATIONS

CHECKPOINT = flags.DEFINE_string(
  "checkpoint",
  None,
  "Hugging Face or Orbax folder, or org/name[@revision] on the hub."
  " Default: the embedded checkpoint.",
)
MODE = flags.DEFINE_enum(
  "mode",
  None,
  MODES,
  "How to decode: ar is one token a pass; diffusion refines blocks in a few"
  " passes; linear_spec and quadratic_spec draft by diffusion and verify by"
  " ar, with exactly ar's output. Default: linear_spec with"
  " --block_length=auto; ar for a checkpoint without a mask token.",
)
MAX_NEW_TOKENS = flags.DEFINE_integer(
  "max_new_tokens", 128, "Most tokens to generate per prompt."
)
BLOCK_LENGTH = flags.DEFINE_string(
  "block_length",
  None,
  "Tokens per block or draft, or auto: linear_spec chooses each draft's by what"
  " it yields, so nfe (and in bfloat16, tokens at ties) may differ from run to"
  " run. Default: auto where no --mode is given; else the checkpoint's"
  " block_size; quadratic_spec: 16. Not used by ar.",
)
THRESHOLD = flags.DEFINE_string(
  "threshold",
  None,
  "diffusion: reveal slots of at least this confidence, in (0, 1], or none."
  " Default: 0.9, or none if --steps_per_block is given.",
)
STEPS_PER_BLOCK = flags.DEFINE_integer(
  "steps_per_block",
  None,
  "diffusion: most denoising passes per block. Default: block_length.",
)
DRAFT_THRESHOLD = flags.DEFINE_float(
  "draft_threshold",
  0.0,
  "linear_spec: repeat draft passes until every slot reaches this confidence;"
  " 0: one draft pass.",
)
LORA = flags.DEFINE_string(
  "lora",
  None,
  "PEFT folder of the drafter for linear_spec; 'none': no drafter. Default:"
  " the checkpoint's own linear_spec_lora, if it has one.",
)
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 is greedy.")
TOP_K = flags.DEFINE_integer("top_k", 0, "Keep the k likeliest; 0: all.")
TOP_P = flags.DEFINE_float(
  "top_p", 1.0, "Then keep the smallest set of this probability, in (0, 1]."
)
MIN_P = flags.DEFINE_float(
  "min_p", 0.0, "Then drop tokens below this times the likeliest, in [0, 1]."
)
GENERATION_CONFIG = flags.DEFINE_enum(
  "generation_config",
  "none",
  ("none", "auto"),
  "auto: take temperature, top_k, top_p, min_p and max_new_tokens from the"
  " checkpoint's generation_config.json where no flag gives them; settings of a"
  " line win over both. Its stop ids always count.",
)
SEED = flags.DEFINE_integer(
  "seed", 0, "Seed of rows that set none; batch and mode do not change it."
)
STOP = flags.DEFINE_multi_string(
  "stop", [], "A text that ends the output when it appears; may be repeated."
)
LOGPROBS = flags.DEFINE_integer(
  "logprobs",
  None,
  "Return log-probabilities of the tokens and of this many of the likeliest.",
)
MAX_THINKING_TOKENS = flags.DEFINE_integer(
  "max_thinking_tokens",
  None,
  "Force the end-of-thinking token after so many tokens, if it has not come.",
)
END_THINK_TOKEN_ID = flags.DEFINE_integer(
  "end_think_token_id",
  None,
  "The end-of-thinking token. Default: the tokenizer's </think>.",
)
CHAT = flags.DEFINE_bool(
  "chat", False, "Take a prompt as a message, through the chat template."
)
ENABLE_THINKING = flags.DEFINE_bool(
  "enable_thinking", None, "Passed to the chat template, if given."
)
DTYPE = flags.DEFINE_enum(
  "dtype",
  None,
  api.DTYPES,
  "Of weights and cache. Default: float32 on CPU, bfloat16 elsewhere.",
)
QUANTIZE = flags.DEFINE_enum(
  "quantize",
  "none",
  SCHEMES,
  "int8: weights in a quarter of float32's bytes, half of bfloat16's, rounded"
  " per output channel as they are read; embedding and norms stay.",
)
MESH = flags.DEFINE_string(
  "mesh",
  None,
  "tensor:n: share the model among the first n devices. Default: one device.",
)
BATCH_SIZE = flags.DEFINE_integer(
  "batch_size", api.BATCH_SIZE, "Prompts decoded together."
)
MAX_LENGTH = flags.DEFINE_integer(
  "max_length",
  None,
  "Limit on prompt + max_new_tokens. Default: the model's.",
)
ATTENTION = flags.DEFINE_enum(
  "attention",
  "auto",
  ("auto", *IMPLEMENTATIONS),
  "Implementation of attention: mosaic on Hopper and Blackwell GPUs, triton on"
  " others, xla anywhere; auto: the first of these that can serve.",
)
DEBUG = flags.DEFINE_bool("debug", False, "Show tracebacks of user errors.")


def row_settings(opened: Checkpoint) -> RowSettings:
  """Settings of rows that set none of their own.

  A flag that was given wins over --generation_config=auto, and that over the
  defaults of the flags.

  Raises:
    UserError: a setting out of range, of the flags or of that file.
  """
  suggested = {}
  if GENERATION_CONFIG.value == "auto":
    suggested = sampling_defaults(opened.folder)
    try:
      RowSettings(**suggested)
    except UserError as e:
      raise UserError(f"{opened.folder / GENERATION_FILE}: {e}") from e
  sampling: dict[str, Any] = {
    flag.name: flag.value
    for flag in (MAX_NEW_TOKENS, TEMPERATURE, TOP_K, TOP_P, MIN_P)
    if flag.present or flag.name not in suggested
  }
  return RowSettings(
    **suggested | sampling,
    seed=SEED.value,
    stop=STOP.value,
    logprobs=LOGPROBS.value,
    max_thinking_tokens=MAX_THINKING_TOKENS.value,
    end_think_token_id=END_THINK_TOKEN_ID.value,
  )


def run_config(model: ModelConfig, mode: str | None = None) -> DecodeConfig:
  """How the run decodes, in --mode or another, with the model's defaults."""
  return decode_config(
    model,
    MODE.value if mode is None else mode,
    block_length=block_length(),
    threshold=_threshold(),
    steps_per_block=STEPS_PER_BLOCK.value,
    draft_threshold=DRAFT_THRESHOLD.value,
  )


def checkpoint() -> Checkpoint:
  """Opens --checkpoint; reads no weights yet."""
  return open_checkpoint(CHECKPOINT.value)


def load(opened: Checkpoint, drafter: bool = True) -> api.Model:
  """Reads the weights as the flags say; the drafter only where it is used."""
  return api.load_model(
    opened,
    DTYPE.value,
    LORA.value if drafter else "none",
    attention(opened),
    QUANTIZE.value,
    MESH.value,
  )


def devices(opened: Checkpoint) -> int:
  """How many devices share the model.

  Raises:
    UserError: --mesh cannot be had on this machine, or for this model.
  """
  return make_mesh(MESH.value, opened.config).size if MESH.value else 1


def attention(opened: Checkpoint) -> str | None:
  """The implementation to ask for; None: chosen.

  Raises:
    UserError: it cannot serve this model on this machine.
  """
  name = None if ATTENTION.value == "auto" else ATTENTION.value
  try:
    api.check_attention(name, opened.config, DTYPE.value)
  except UserError as e:
    raise UserError(f"--{e}") from e
  return name


def max_length() -> int | None:
  """The limit on positions, if one is set."""
  value = MAX_LENGTH.value
  if value is not None and value < 1:
    raise UserError(f"max_length should be at least 1, got {value}.")
  return value


def batch_size() -> int:
  """Prompts per batch."""
  if BATCH_SIZE.value < 1:
    raise UserError(f"batch_size should be at least 1, got {BATCH_SIZE.value}.")
  return BATCH_SIZE.value


def deciding(
  opened: Checkpoint, config: DecodeConfig, row: RowSettings
) -> dict[str, Any]:
  """Everything that decides the results of a job, for its settings file."""
  settings = {
    "checkpoint": str(opened.folder.resolve()),
    # Of what both have, a row says nothing here: the run's holds.
    **dataclasses.asdict(row),
    **dataclasses.asdict(config),
    "lora": LORA.value,
    "dtype": DTYPE.value or api.default_dtype(),
    "quantize": QUANTIZE.value,
    "chat": CHAT.value,
    "enable_thinking": ENABLE_THINKING.value,
  }
  return {
    k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()
  }


def block_length() -> int | str | None:
  """What --block_length says."""
  text = BLOCK_LENGTH.value
  if text is None or text.lower() == AUTO:
    return text and AUTO
  try:
    return int(text)
  except ValueError as e:
    raise UserError(
      f"block_length should be a whole number or auto, got {text!r}."
    ) from e


def _threshold() -> float | Literal["auto"] | None:
  text = THRESHOLD.value
  if text is None:
    return "auto"
  if text.lower() == "none":
    return None
  try:
    return float(text)
  except ValueError as e:
    raise UserError(
      f"threshold should be a number in (0, 1] or none, got {text!r}."
    ) from e
