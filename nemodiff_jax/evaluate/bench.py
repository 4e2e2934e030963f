"""Speed of one model: time of a pass, tokens per second, and the floor.

The floor of a pass is what its device cannot undercut: every weight but the
embedding table, and the keys and values it sees, are read once; two operations
per weight and query, four per query, key and head dimension.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nemodiff_jax import api
from nemodiff_jax.decode.config import DecodeConfig, RowSettings, check_prompt
from nemodiff_jax.decode.memory import estimate
from nemodiff_jax.decode.state import Weights
from nemodiff_jax.errors import UserError
from nemodiff_jax.evaluate import decoding
from nemodiff_jax.evaluate.measure import Floor
from nemodiff_jax.evaluate.peer import Peer
from nemodiff_jax.evaluate.sweep import label
from nemodiff_jax.nn.config import ModelConfig, preset
from nemodiff_jax.nn.model import Transformer, init_params
from nemodiff_jax.nn.quantize import quantize, scheme_of
from pallas_kernels.chips import Chip

REPEATS = 5
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Case:
  """What is timed.

  Attributes:
    setting: how it decodes.
    batch: rows.
    context: tokens of each prompt.
    new: tokens generated.
  """

  setting: DecodeConfig
  batch: int
  context: int
  new: int


def random_model(shape: str, dtype: str | None, scheme: str) -> api.Model:
  """A model of a released size with random weights, made on the device.

  Raises:
    UserError: an unknown shape.
  """
  config, dtype = preset(shape), dtype or api.default_dtype()

  def make(key):
    params = init_params(config, key, jnp.dtype(dtype))
    return quantize(params) if scheme == "int8" else params

  weights = Weights(jax.jit(make)(jax.random.key(_SEED)))
  module = Transformer(config, jnp.dtype(dtype))
  return api.Model(config, None, None, module, weights)


def run(
  model: api.Model, case: Case, floor: Floor, peer: Peer | None
) -> dict[str, Any]:
  """One row of the table.

  Times are medians of runs of `new` tokens less those of one token, so that
  the prefill is not in them; runs with the peer alternate. The peer's time has
  its prefill in it.

  Raises:
    UserError: it does not fit into memory or the model, or `new` is below 2.
  """
  if case.new < 2:
    raise UserError(f"new_tokens should be at least 2, got {case.new}.")
  prompts = random_prompts(model.config, case.batch, case.context)
  check_prompt(prompts[0], RowSettings(max_new_tokens=case.new), model.config)
  decode = lambda new: list(
    decoding.decode(
      model, case.setting, prompts,
      RowSettings(max_new_tokens=new, ignore_eos=True), case.batch,
    )
  )  # fmt: skip
  outs, first = decode(case.new), decode(1)  # These compile.
  whole, begin, theirs = [], [], []
  for _ in range(REPEATS):
    whole.append(_seconds(lambda: decode(case.new)))
    begin.append(_seconds(lambda: decode(1)))
    if peer is not None:
      theirs.append(peer.run(prompts, case.new)["seconds"])
  spent = max(1e-9, statistics.median(whole) - statistics.median(begin))
  passes = max(o.nfe for o in outs) - max(o.nfe for o in first)
  tokens = sum(o.completion_tokens for o in outs) - len(first)
  least = floor.seconds(*cost(model, case))
  row: dict[str, Any] = {
    "setting": label(case.setting),
    "batch": case.batch,
    "context": case.context,
    "new_tokens": case.new,
    "ms_per_pass": 1e3 * spent / max(1, passes),
    "tokens_per_second": tokens / spent,
    "tokens_per_forward": sum(o.completion_tokens for o in outs)
    / max(1, sum(o.nfe for o in outs)),
    "prefill_ms": 1e3 * statistics.median(begin),
    "memory_gib": memory_gib(model, case),
    "floor_ms": 1e3 * least,
  }
  if theirs:
    row["peer_tokens_per_second"] = (
      case.batch * case.new / statistics.median(theirs)
    )
    row["with_prefill_tokens_per_second"] = (
      case.batch * case.new / statistics.median(whole)
    )
  return row


def random_prompts(
  config: ModelConfig, batch: int, context: int
) -> list[list[int]]:
  """Equally long prompts without special ids."""
  rng = np.random.default_rng(_SEED)
  special = (config.mask_id, config.bos_id, *config.eos_ids)
  low = max(i for i in (*special, 0) if i is not None) + 1
  if low >= config.vocab_size:  # Special ids at the end: those below them.
    low, high = 0, min(i for i in special if i is not None)
  else:
    high = config.vocab_size
  return rng.integers(low, high, (batch, context)).tolist()


def queries_of(setting: DecodeConfig) -> int:
  """Tokens that a row puts into a pass."""
  c = setting.block_length
  return {"ar": 1, "quadratic_spec": c * (c + 1)}.get(setting.mode, c)


def cost(model: api.Model, case: Case) -> tuple[float, float]:
  """(bytes, operations) that a pass needs at least, halfway through."""
  params, c = model.weights.params, model.config
  table = 0 if c.tie_embeddings else params["embed_tokens"]["embedding"].nbytes
  weights = sum(x.nbytes for x in jax.tree.leaves(params)) - table
  count = sum(x.size for x in jax.tree.leaves(params))
  count -= 0 if c.tie_embeddings else c.vocab_size * c.hidden_size
  seen = case.context + case.new // 2
  item = jnp.dtype(model.module.dtype).itemsize
  keys = 2 * c.num_layers * c.num_kv_heads * c.head_dim * seen * item
  queries = case.batch * queries_of(case.setting)
  wide = c.num_layers * c.num_heads * c.head_dim
  return weights + case.batch * keys, queries * (2 * count + 4 * seen * wide)


def project(
  row: dict[str, Any], model: api.Model, case: Case, floor: Floor, chip: Chip
) -> float:
  """Milliseconds of a pass on another chip: a projection, no measurement.

  The measured time, scaled as the floors are, with bfloat16 weights and cache.
  """
  there = Floor(float(chip.bandwidth), chip.flops)
  moved, operations = cost(model, case)
  narrow = 2 / jnp.dtype(model.module.dtype).itemsize
  ratio = there.seconds(moved * narrow, operations)
  return row["ms_per_pass"] * ratio / floor.seconds(moved, operations)


def memory_gib(model: api.Model, case: Case) -> float:
  """The device's own peak if it tells, else the estimate."""
  stats = jax.local_devices()[0].memory_stats() or {}
  needs = estimate(
    model.config, case.setting, model.module.dtype, case.batch, case.context,
    case.new, scheme=scheme_of(model.weights.params),
  )  # fmt: skip
  return stats.get("peak_bytes_in_use", needs.total) / 2**30


def below_floor(rows: Sequence[dict[str, Any]]) -> bool:
  """Whether a pass was faster than the memory that it counts as read."""
  return any(row["ms_per_pass"] < row["floor_ms"] for row in rows)


def table(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
  """Rows as text, the head first."""
  columns = [
    ("setting", "setting", "{}"),
    ("batch", "batch", "{}"),
    ("context", "context", "{}"),
    ("ms_per_pass", "ms/pass", "{:.3f}"),
    ("floor_ms", "floor ms", "{:.3g}"),
    ("tokens_per_second", "tok/s", "{:.0f}"),
    ("tokens_per_forward", "tokens/forward", "{:.2f}"),
    ("prefill_ms", "prefill ms", "{:.1f}"),
    ("memory_gib", "GiB", "{:.3g}"),
    ("with_prefill_tokens_per_second", "with prefill tok/s", "{:.0f}"),
    ("peer_tokens_per_second", "transformers tok/s", "{:.0f}"),
    ("projected_ms", "projected ms", "{:.3g}"),
  ]
  used = [c for c in columns if any(c[0] in r for r in rows)]
  cells = [[c[1] for c in used]]
  for r in rows:
    cells.append([c[2].format(r[c[0]]) if c[0] in r else "-" for c in used])
  return cells


def _seconds(f: Callable[[], Any]) -> float:
  start = time.perf_counter()
  f()
  return time.perf_counter() - start
