"""Checks a run's configuration, and turns parts of it into plain data."""

import difflib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from nemodiff_jax.decode.config import MODES
from nemodiff_jax.errors import UserError
from nemodiff_jax.nn.config import ModelConfig
from train.configs import tiny
from train.corruption import EDGES, Canvas, Corruption
from train.drafter import DrafterLoss
from train.losses import COUNTS, Joint
from train.mesh import row_shards
from train.optimizer import OPTIMIZERS
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
  " data.bins checkpoint.every checkpoint.keep"
).split()


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
  flat, known = flatten(config), flatten(tiny.get_config())
  for name in flat.keys() - known.keys():
    raise UserError(f"config: unknown key {name!r}{near(name, known)}.")
  for name in sorted(known.keys() - flat.keys()):
    raise UserError(
      f"config: {name!r} is missing; train/configs/tiny.py names every key."
    )
  for name, choices in _CHOICES.items():
    if flat[name] not in choices:
      raise UserError(
        f"config.{name} should be one of {choices}, got {flat[name]!r}."
      )
  for name in _POSITIVE:
    if not isinstance(flat[name], int) or flat[name] < 1:
      raise UserError(
        f"config.{name} should be a whole number of at least 1, got"
        f" {flat[name]!r}."
      )
  for mode in config.eval.modes:
    if mode not in MODES:
      raise UserError(
        f"config.eval.modes should be among {MODES}, got {mode!r}."
      )
  if not config.data.source:
    raise UserError(
      "config.data.source should be 'arithmetic', JSONL files with commas"
      " between, or a folder of shards; got ''."
    )
  best, kinds = config.checkpoint.best, ("accuracy", "tokens_per_forward")
  metrics = [f"eval/{m}_{kind}" for m in config.eval.modes for kind in kinds]
  if best and (best not in metrics or not config.eval.every):
    raise UserError(
      "config.checkpoint.best should be '' or, with eval.every, one of"
      f" {metrics}, got {best!r}."
    )
  how = config.corruption
  if config.objective == "drafter" and (
    how.draft < 1 or how.draft_known_first < 1
  ):
    raise UserError(
      "config.corruption.draft and draft_known_first should be 1.0 for the"
      f" drafter, got {how.draft} and {how.draft_known_first}."
    )
  _check_blocks(config)


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
  """Raises a UserError unless rows spread evenly over turns and devices."""
  shards, turns = row_shards(mesh), config.accumulate
  here = jax.process_index()
  own = sum(
    any(d.process_index == here for d in row)
    for row in mesh.devices.reshape(shards, -1)
  )
  if own * jax.process_count() != shards:
    raise UserError(
      "config.mesh.tensor should lie within a process, which gives rows of its"
      f" own: of {shards} parts of a batch, this process would hold {own}, and"
      f" there are {jax.process_count()} processes."
    )
  if config.batch_size % (shards * turns):
    raise UserError(
      "config.batch_size should be a multiple of data x fsdp x accumulate ="
      f" {shards // mesh.shape['fsdp']} x {mesh.shape['fsdp']} x {turns}, got"
      f" {config.batch_size}."
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
  config: ml_collections.ConfigDict, model: ModelConfig, block: int
) -> Plan:
  """The step's plan for one block length."""
  joint = {
    name: config[name]
    for name in "ar_weight diffusion_weight count hard_weight chunk".split()
  }
  return Plan(
    stack=Stack(model, jnp.dtype(config.dtype), config.remat),
    joint=Joint(**joint),
    how=Corruption(**config.corruption),
    canvas=Canvas(
      noisy=config.noisy_length,
      block=block,
      mask_id=-1 if model.mask_id is None else model.mask_id,
      eos_id=model.eos_ids[0],
    ),
    accumulate=config.accumulate,
    seed=config.seed,
  )


def drafter_loss(config: ml_collections.ConfigDict) -> DrafterLoss:
  """The drafter's objective."""
  return DrafterLoss(**config.drafter)


def near(name: str, known) -> str:
  """' (nearest known key: ...)', or '' where nothing is near."""
  found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  return f" (nearest known key: {found[0]!r})" if found else ""
