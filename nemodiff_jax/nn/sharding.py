"""One decoder over several devices: tensor parallelism, by one table.

Each of n devices holds K / n key heads with their queries and cache, 1 / n of
the SwiGLU, of the head's vocabulary and of the embedding's width. A layer ends
its two halves with one all-reduce each; a pass gathers its embeddings at the
start and its logits at the end, so that what comes after the head runs on every
device alike. A drafter adds one small all-reduce per layer to a draft.
"""

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from nemodiff_jax.errors import UserError
from nemodiff_jax.nn.config import ModelConfig

AXIS = "tensor"
ALL = P()
HEADS = P(None, None, AXIS)  # [B, T or S, heads, H]
# Which mesh axis splits which axis of each [in, out] kernel (or [V, D] table):
# the one table of the project. Decoding has no axis 'fsdp'.
SPLIT = {
  "q_proj": ("fsdp", AXIS),
  "k_proj": ("fsdp", AXIS),
  "v_proj": ("fsdp", AXIS),
  "o_proj": (AXIS, "fsdp"),
  "gate_proj": ("fsdp", AXIS),
  "up_proj": ("fsdp", AXIS),
  "down_proj": (AXIS, "fsdp"),
  "embed_tokens": (AXIS, "fsdp"),
  "diffusion_head": ("fsdp", AXIS),
}
_DIVIDED = ("num_kv_heads", "intermediate_size", "vocab_size", "hidden_size")


def make_mesh(text: str, config: ModelConfig) -> Mesh:
  """The first n devices, for text = 'tensor:n'.

  Raises:
    UserError: text does not parse, there are fewer devices, or the model
      cannot be split in n.
  """
  name, _, size = text.partition(":")
  if name != AXIS or not size.isdecimal() or not int(size):
    raise UserError(f"mesh should be '{AXIS}:n', n devices, got {text!r}.")
  count, devices = int(size), jax.devices()
  if count > len(devices):
    raise UserError(
      f"mesh {text!r} needs {count} devices, found {len(devices)}"
      f" ({devices[0].device_kind})."
    )
  for field in _DIVIDED:
    value = getattr(config, field)
    if value % count:
      raise UserError(
        f"mesh {text!r}: the model's {field} should be a multiple of {count},"
        f" got {value}."
      )
  return Mesh(np.array(devices[:count]), (AXIS,))


def spec(path: tuple[str, ...]) -> P:
  """How the parameter at `path` is split; P() where every device has it all.

  The scale of a quantised kernel has the kernel's output axis alone.
  """
  name = next((key for key in path if key in SPLIT), None)
  if name is None:
    return P()
  axis = SPLIT[name].index(AXIS)
  if name == "embed_tokens":
    axis = 1  # By rows, XLA would gather all of it to look up a single token.
  if path[-1] == "scale":
    return P(AXIS) if axis == 1 else P()
  return P(AXIS) if axis == 0 else P(None, AXIS)


def shard_lora(lora: Any, mesh: Mesh) -> Any:
  """The drafter's terms; they read what o_proj reads."""

  def place(path: Any, x: Array) -> Array:
    split = P(AXIS) if path[-1].name == "a" else P()
    return jax.device_put(x, NamedSharding(mesh, split))

  return jax.tree_util.tree_map_with_path(place, lora)


def gather(x: Array, mesh: Mesh | None) -> Array:
  """X whole on every device of the mesh."""
  if mesh is None:
    return x
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P()))


def heads_apart(
  attend: Any, where: Any, mesh: Mesh, heads: P = HEADS, rows: P = ALL
) -> Any:
  """attend(where, q, k, v, memory), by each device for its own heads.

  Args:
    attend: what is run.
    where: its first argument.
    mesh: the devices.
    heads: how q, k, v and the output are split.
    rows: how the arrays of `where` are.
  """
  apart = jax.shard_map(
    attend,
    mesh=mesh,
    in_specs=(rows, heads, heads, heads, heads),
    out_specs=(heads, heads),
    check_vma=False,  # Loops start from zeros, which vary on no axis.
  )
  return functools.partial(apart, where)
