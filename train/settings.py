"""Checks a run's configuration, and turns parts of it into plain data."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from nemodiff_jax.decode.config import MODES
from nemodiff_jax.errors import UserError, nearest
from nemodiff_jax.nn.config import ModelConfig
from train.configs import base
from train.corruption import EDGES, Canvas, Corruption
from train.drafter import DrafterLoss
from train.losses import COUNTS, Joint
from train.mesh import row_shards
from train.optimizer import OPTIMIZERS
from train.sources import source_paths
from train.stack import REMAT, Stack
from train.step import Plan

_CHOICES = {
  "objective": ("joint", "drafter"),
  "dtype": ("float32", "bfloat16"),
  "remat": tuple(REMAT),
  "count": COUNTS,
  "hard": ("none", "digits"),
  "corruption.edges": EDGES,
  "optimizer.name": OPTIMIZERS,
  "data.on_error": ("error", "skip"),
}
_POSITIVE = (
  "steps batch_size accumulate length noisy_length chunk log_every"
  " max_bad_steps drafter.rank drafter.top drafter.blocks data.shards"
  " data.bins validation.every validation.batches eval.questions"
  " eval.max_new_tokens checkpoint.every checkpoint.keep"
).split()
# Interval -> keys; a round bracket leaves its end out.
_RANGES = {
  "[0, 1]": (
    "corruption.t_min corruption.draft corruption.hard_last"
    " corruption.known_first corruption.draft_known_first corruption.shift"
    " drafter.sampled optimizer.decay"
  ),
  "(0, 1]": "corruption.eps",
  "[0, 1)": "optimizer.b1 optimizer.b2",
  "(0, inf)": "hard_weight drafter.alpha drafter.temperature optimizer.eps",
  "(0, inf]": "optimizer.lr optimizer.clip",
  "[0, inf)": "ar_weight diffusion_weight optimizer.weight_decay",
  "[0, inf]": "optimizer.final_lr",
}
_COUNTS_FROM_0 = ("seed", "optimizer.warmup", "eval.every")


def flatten(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Dotted name -> value, as JSON holds it."""
  flat: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      flat |= {f"{key}.{k}": v for k, v in flatten(value).items()}
    else:
      flat[key] = list(value) if isinstance(value, tuple) else value
  return flat


def check(config: ml_collections.ConfigDict) -> None:
  """Raises a UserError unless the configuration is complete and usable."""
  flat, known = flatten(config), flatten(base.get_config())
  for name in flat.keys() - known.keys():
    raise UserError(
      f"config: unknown key {name!r}{nearest(name, known, 'key')}."
    )
  for name in sorted(known.keys() - flat.keys()):
    raise UserError(
      f"config: {name!r} is missing; train/configs/base.py names every key."
    )
  for name, choices in _CHOICES.items():
    if flat[name] not in choices:
      raise UserError(
        f"config.{name} should be one of {choices}, got {flat[name]!r}."
      )
  for mode in config.eval.modes:
    if mode not in MODES:
      raise UserError(
        f"config.eval.modes should be among {MODES}, got {mode!r}."
      )
  if not source_paths(config.data.source):
    raise UserError(
      "config.data.source should be 'arithmetic', JSONL files with commas"
      " between, or a folder that train.make_shards wrote; got"
      f" {config.data.source!r}."
    )
  _check_numbers(flat)
  _check_together(config)
  _check_blocks(config)


def _check_numbers(flat: dict[str, Any]) -> None:
  """Raises a UserError for a number out of its range."""
  whole = dict.fromkeys(_POSITIVE, 1) | dict.fromkeys(_COUNTS_FROM_0, 0)
  for name, least in whole.items():
    if not isinstance(flat[name], int) or flat[name] < least:
      raise UserError(
        f"config.{name} should be a whole number of at least {least}, got"
        f" {flat[name]!r}."
      )
  if flat["seed"] >= 1 << 32:
    raise UserError(f"config.seed should be below 2**32, got {flat['seed']}.")
  for interval, names in _RANGES.items():
    low, high = (float(x) for x in interval[1:-1].split(","))
    for name in names.split():
      x = flat[name]
      above = x > low if interval[0] == "(" else x >= low
      below = x < high if interval[-1] == ")" else x <= high
      if not (above and below):
        raise UserError(
          f"config.{name} should be a number in {interval}, got {x!r}."
        )


def _check_together(config: ml_collections.ConfigDict) -> None:
  """Raises a UserError where one setting does not fit another."""
  best, kinds = config.checkpoint.best, ("accuracy", "tokens_per_forward")
  metrics = [f"eval/{m}_{kind}" for m in config.eval.modes for kind in kinds]
  if best and (best not in metrics or not config.eval.every):
    raise UserError(
      "config.checkpoint.best should be '' or, with eval.every, one of"
      f" {metrics}, got {best!r}."
    )
  c = config.corruption
  if config.objective == "joint" and c.draft + c.hard_last > 1:
    raise UserError(
      "config.corruption.draft and hard_last are shares of the rows, at most 1"
      f" together, got {c.draft} and {c.hard_last}."
    )
  if config.objective == "drafter" and (c.draft < 1 or c.draft_known_first < 1):
    raise UserError(
      "config.corruption.draft and draft_known_first should be 1.0 for the"
      f" drafter, got {c.draft} and {c.draft_known_first}."
    )
  if not config.ar_weight and not config.diffusion_weight:
    raise UserError(
      "config.ar_weight and diffusion_weight are both 0: nothing would be"
      " learned; set one of them."
    )
  if config.optimizer.warmup > config.steps:
    raise UserError(
      f"config.optimizer.warmup should be at most the {config.steps} steps of"
      f" the run, got {config.optimizer.warmup}."
    )


def _check_blocks(config: ml_collections.ConfigDict) -> None:
  lengths = tuple(config.block_lengths)
  if not lengths or min(lengths) < 1:
    raise UserError(
      f"config.block_lengths should be positive numbers, got {lengths}."
    )
  for block in lengths:
    for name in ("length", "noisy_length"):
      if config[name] % block:
        raise UserError(
          f"config.{name} should be a multiple of the block length {block},"
          f" got {config[name]}."
        )
    if max(lengths) % block:
      raise UserError(
        f"config.block_lengths: {block} should divide the largest,"
        f" {max(lengths)}."
      )


def check_batch(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
  """Raises a UserError unless rows spread evenly over devices and streams."""
  parts, microbatches = row_shards(mesh), config.accumulate
  here = jax.process_index()
  own = sum(
    any(d.process_index == here for d in row)
    for row in mesh.devices.reshape(parts, -1)
  )
  if own * jax.process_count() != parts:
    raise UserError(
      "config.mesh.tensor should lie within a process, which gives rows of its"
      f" own: of {parts} parts of a batch, this process would hold {own}, and"
      f" there are {jax.process_count()} processes."
    )
  if config.batch_size % (parts * microbatches):
    raise UserError(
      "config.batch_size should be a multiple of data x fsdp x accumulate ="
      f" {parts // mesh.shape['fsdp']} x {mesh.shape['fsdp']} x {microbatches},"
      f" got {config.batch_size}; with more devices, lower config.accumulate."
    )
  if config.batch_size % config.data.shards:
    raise UserError(
      f"config.data.shards should divide batch_size {config.batch_size}, got"
      f" {config.data.shards}."
    )
  if config.data.shards % jax.process_count():
    raise UserError(
      "config.data.shards should be a multiple of the"
      f" {jax.process_count()} processes, got {config.data.shards}."
    )


def make_plan(
  config: ml_collections.ConfigDict,
  model: ModelConfig,
  block: int,
  mesh: Mesh | None = None,
) -> Plan:
  """The step's plan for one block length, on a mesh (None: one device)."""
  joint = {
    name: config[name]
    for name in "ar_weight diffusion_weight count hard_weight chunk".split()
  }
  return Plan(
    stack=Stack(model, jnp.dtype(config.dtype), config.remat, mesh),
    joint=Joint(**joint),
    recipe=Corruption(**config.corruption),
    canvas=Canvas(
      noisy=config.noisy_length,
      block=block,
      mask_id=-1 if model.mask_id is None else model.mask_id,
      eos_ids=model.eos_ids,
    ),
    accumulate=config.accumulate,
    seed=config.seed,
  )


def drafter_loss(config: ml_collections.ConfigDict) -> DrafterLoss:
  """The drafter's objective."""
  return DrafterLoss(**config.drafter)
