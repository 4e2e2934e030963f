"""A loaded model as a server has it: what it offers, and its engine."""

from collections.abc import Sequence

from nemodiff_jax.decode.config import AUTO, MODES, DecodeConfig, decode_config
from nemodiff_jax.decode.modes import MODES as KNOWN
from nemodiff_jax.engines import (
  MEMORY_FRACTION,
  longest,
  open_cache,
  open_engine,
)
from nemodiff_jax.io.checkpoint import Checkpoint
from nemodiff_jax.model import Model
from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.serve.lanes import Lanes, Name
from nemodiff_jax.serve.served import Served
from nemodiff_jax.serve.structured import Grammars


def open_server(
  model: Model,
  config: DecodeConfig,
  *,
  name: str,
  modes: Sequence[str] | None = None,
  rows: int = 16,
  queue: int = 1024,
  max_length: int | None = None,
  memory_fraction: float = MEMORY_FRACTION,
  request_templates: bool = False,
  strict_model: bool = False,
) -> tuple[Served, Lanes]:
  """The model as it is served, and its engine.

  Args:
    model: from `load`.
    config: how requests are decoded that say nothing else.
    name: of the model in answers.
    modes: that requests may name; None: all that the checkpoint has.
    rows: requests that run at once, in each lane.
    queue: requests that may wait, in each lane.
    max_length: of prompt + max_new_tokens; None: the model's.
    memory_fraction: of the memory that is free, for the cache; at most.
    request_templates: take chat templates that requests bring.
    strict_model: refuse other names than `name`.

  Raises:
    UserError: a mode that the checkpoint does not have, or no memory.
  """
  served = make_served(
    model,
    config,
    name=name,
    modes=modes,
    max_length=max_length,
    request_templates=request_templates,
    strict_model=strict_model,
  )
  lanes = open_lanes(
    model,
    config,
    rows=rows,
    queue=queue,
    max_length=max_length,
    memory_fraction=memory_fraction,
  )
  return served, lanes


def make_served(
  opened: Model | Checkpoint,
  config: DecodeConfig,
  *,
  name: str,
  modes: Sequence[str] | None = None,
  max_length: int | None = None,
  request_templates: bool = False,
  strict_model: bool = False,
) -> Served:
  """The model as requests see it; needs no weights.

  Args: as `open_server`.

  Raises:
    UserError: a mode that the checkpoint does not have.
  """
  model, tokenizer = opened.config, opened.tokenizer
  for mode in modes or ():
    decode_config(model, mode)
  offered = tuple(
    m for m in _modes(model) if modes is None or m in (*modes, config.mode)
  )
  grammars = None
  if tokenizer is not None:
    grammars = Grammars(tokenizer, model.vocab_size, model.eos_ids)
  return Served(
    name=name,
    config=model,
    tokenizer=tokenizer,
    template=opened.template,
    mode=config.mode,
    modes=offered,
    widths={m: _widths(model, m, _default(config)) for m in offered},
    features=Lanes.features,
    max_length=longest(model, max_length),
    grammars=grammars,
    request_templates=request_templates,
    strict_model=strict_model,
  )


def open_lanes(
  model: Model,
  config: DecodeConfig,
  *,
  rows: int,
  queue: int,
  max_length: int | None = None,
  memory_fraction: float = MEMORY_FRACTION,
) -> Lanes:
  """An engine of every mode and width that the checkpoint has.

  Args: as `open_server`.

  Raises:
    UserError: memory leaves no page.
  """
  length = longest(model.config, max_length)
  positions = length + model.config.block_size
  cache = open_cache(model, rows, positions, memory_fraction)

  def open_lane(lane: Name):
    return open_engine(
      model,
      _lane_config(model, config, lane),
      rows=rows,
      queue=queue,
      max_length=length,
      cache=cache,
    )

  own = _modes(model.config)
  fixed = {m: decode_config(model.config, m).slots for m in own}
  return Lanes(open_lane, cache, _default(config), fixed)


def _modes(model: ModelConfig) -> list[str]:
  """All that a checkpoint has."""
  masked = model.mask_id is not None
  return [m for m in MODES if masked or not KNOWN[m].masked]


def _default(config: DecodeConfig) -> Name:
  """The lane of requests that say nothing."""
  return config.mode, AUTO if config.widths else config.slots


def _widths(
  model: ModelConfig, mode: str, default: Name
) -> tuple[int | str, ...]:
  """Block lengths that requests of a mode may name."""
  found: list[int | str] = [decode_config(model, mode).slots]
  if mode == default[0]:
    found.append(default[1])
  if mode == "linear_spec":
    auto = decode_config(model, mode, block_length=AUTO).widths or ()
    found = [*(w for w in auto if w > 1), *found, AUTO]
  return tuple(dict.fromkeys(found))


def _lane_config(
  model: Model, config: DecodeConfig, lane: Name
) -> DecodeConfig:
  """How a lane decodes: the server's own way, where it is of its mode."""
  mode, width = lane
  block = None if mode == "ar" else width
  if mode != config.mode:
    return decode_config(model.config, mode, block_length=block)
  return decode_config(
    model.config,
    mode,
    block_length=block,
    threshold=config.threshold,
    steps_per_block=config.steps_per_block,
    draft_threshold=config.draft_threshold,
  )
