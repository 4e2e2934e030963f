"""Speed and memory of training, ratios in one run.

    .venv/bin/python -m benchmarks.train --part=cpu    the joint step and torch's
    JAX_PLATFORMS=cpu .venv/bin/python -m benchmarks.train --part=aot
                                                       memory, compiled for H200
    .venv/bin/python -m benchmarks.train --part=mfu    the 3B shape on a GPU

cpu: the joint step (forward, backward, AdamW) in float32 and the same step in
torch with a dense mask, the same parameters and the same batch, in turn. The
losses of the first step must agree. PEER_PYTHON names a Python that has torch.

aot: temporary memory by XLA's own account, compiled for an H200 that is not
there; nothing runs.

mfu: one row of 4096 + 4096 tokens a step, random weights, float32 masters,
bfloat16 computation, full remat; operations of the model without recomputation
(`train.flops.model_operations`) over the device's peak. --size=tiny runs the
same code anywhere.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from nemodiff_jax.nn.config import ModelConfig, RopeConfig, preset
from nemodiff_jax.nn.model import Params, init_params
from train import flops
from train.corruption import Canvas, Corruption, Rows
from train.losses import Joint, token_losses
from train.stack import Stack, stack_layers
from train.step import Plan, init_state, loss_joint, make_step, prepare_joint

_PART = flags.DEFINE_enum(
  "part", "cpu", ["cpu", "aot", "mfu"], "What to measure."
)
_SIZE = flags.DEFINE_string("size", "3b", "Of --part=mfu.")
_STEPS = flags.DEFINE_integer("timed_steps", 8, "Timed steps of each.")

SMALL = ModelConfig(
  vocab_size=4096,
  hidden_size=256,
  intermediate_size=768,
  num_layers=4,
  num_heads=8,
  num_kv_heads=2,
  head_dim=32,
  max_positions=4096,
  rope=RopeConfig(theta=1e4),
  mask_id=5,
  eos_ids=(2,),
)
ROWS, LENGTH, BLOCK = 4, 512, 32
ADAMW = dict(
  name="adamw", lr=1e-4, final_lr=1e-4, warmup=0, decay=0.1, b1=0.9,
  b2=0.999, eps=1e-8, weight_decay=0.1, clip=1e9,
)  # fmt: skip


def plan(config: ModelConfig, length: int, dtype, remat: str) -> Plan:
  canvas = Canvas(length, BLOCK, config.mask_id or 0, config.eos_ids)
  return Plan(Stack(config, dtype, remat), Joint(), Corruption(), canvas)


def new_params(config: ModelConfig, dtype=jnp.float32) -> Params:
  params = init_params(config, jax.random.key(0), dtype)
  return stack_layers(params, config.num_layers)


def rows(config: ModelConfig, count: int, length: int) -> Rows:
  rng = np.random.default_rng(0)
  tokens = rng.integers(10, config.vocab_size, (count, length))
  return Rows(
    tokens=jnp.asarray(tokens, jnp.int32),
    supervised=jnp.ones((count, length), bool),
    start=jnp.zeros((count, length), jnp.int32),
    example=jnp.arange(count, dtype=jnp.int32),
  )


def peer_data(
  path: Path, made: Plan, params: Params, batch: Rows, hard
) -> None:
  """The same batch for the peer, its mask dense."""
  part = jax.jit(lambda r: prepare_joint(made, made.key(jnp.int32(0)), r, hard))
  made_of = part(batch)
  noisy, counts, (clean, masks) = made_of.noisy, made_of.counts, made_of.targets
  index = np.arange(LENGTH)
  block = np.kron(
    np.eye(LENGTH // BLOCK, dtype=bool), np.ones((BLOCK,) * 2, bool)
  )
  before = index[None] < (index[:, None] // BLOCK) * BLOCK
  mask = np.block(
    [
      [block, before],
      [np.zeros((LENGTH,) * 2, bool), np.tri(LENGTH, dtype=bool)],
    ]
  )
  wide = lambda x: np.broadcast_to(x, (ROWS, *x.shape))
  weight = np.concatenate(
    [
      made.joint.diffusion_weight * masks.weight / counts.diffusion,
      clean.weight / counts.ar,
    ],
    1,
  )
  sizes = dict(
    layers=SMALL.num_layers, heads=SMALL.num_heads, kv=SMALL.num_kv_heads,
    head=SMALL.head_dim, theta=SMALL.rope.theta, eps=SMALL.rms_norm_eps,
  )  # fmt: skip
  leaves = jax.tree_util.tree_leaves_with_path(params)
  arrays: dict[str, Any] = dict(
    config=json.dumps(sizes),
    tokens=np.concatenate([noisy.tokens, batch.tokens], 1).astype(np.int64),
    positions=wide(np.concatenate([index, index])),
    mask=wide(mask),
    target=np.concatenate([masks.token, clean.token], 1).astype(np.int64),
    weight=weight.astype(np.float32),
  )
  arrays |= {
    "p:" + "/".join(k.key for k in p): np.asarray(x) for p, x in leaves
  }
  np.savez(path, **arrays)


def cpu() -> None:
  made = plan(SMALL, LENGTH, jnp.float32, "none")
  params = new_params(SMALL)
  batch, hard = rows(SMALL, ROWS, LENGTH), jnp.zeros(SMALL.vocab_size, bool)
  optimizer = adamw(params)
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "batch.npz"
    peer_data(path, made, params, batch, hard)
    peer = subprocess.Popen(
      [
        os.environ.get("PEER_PYTHON", sys.executable),
        str(Path(__file__).with_name("train_peer.py")),
        str(path),
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    if peer.stdin is None or peer.stdout is None:
      raise SystemExit("the peer has no pipes")
    versions = peer.stdout.readline()
    if not versions:
      raise SystemExit("the peer stopped: is torch there? See PEER_PYTHON.")
    state, step = init_state(optimizer, params), make_step(made, optimizer)
    ours, theirs = [], []
    for turn in range(_STEPS.value + 2):  # Two of them warm up.
      start = time.perf_counter()
      state, metrics = step(state, {}, batch, hard)
      loss = float(metrics["loss"])
      ours.append(time.perf_counter() - start)
      peer.stdin.write("\n")
      peer.stdin.flush()
      said = json.loads(peer.stdout.readline())
      theirs.append(said["seconds"])
      if turn == 0 and abs(said["loss"] / loss - 1) > 1e-4:
        raise SystemExit(f"losses differ: {loss} here, {said['loss']} there")
    peer.stdin.close()
    peer.wait()
  mine, other = (statistics.median(x[2:]) for x in (ours, theirs))
  print(f"peer: torch {json.loads(versions)['torch']}; first losses agree")
  print(
    f"joint step, {ROWS} rows of {LENGTH} + {LENGTH}, {SMALL.hidden_size} wide,"
    f" {SMALL.num_layers} layers, vocabulary {SMALL.vocab_size}, float32:"
    f" {1e3 * mine:.0f} ms, torch {1e3 * other:.0f} ms, ratio"
    f" {other / mine:.2f} (above 1: faster than torch)"
  )


def aot() -> None:
  from pallas_kernels.aot import compile_for

  shape = lambda dtype, *s: jax.ShapeDtypeStruct(s, dtype)
  bf16, gib = jnp.bfloat16, 2**30

  def temporary(name: str, f, *args) -> None:
    memory: Any = compile_for("h200", f, *args).memory_analysis()
    print(f"{name}: {memory.temp_size_in_bytes / gib:.2f} GiB", flush=True)

  hidden, target = shape(bf16, 1, 8192, 4096), shape(jnp.int32, 1, 8192)
  kernel = shape(bf16, 4096, 131072)
  for chunk in (1024, 8192):
    loss = lambda h, k, t, c=chunk: token_losses(h, k, t, c).mean()
    temporary(
      f"cross entropy, 8192 x 131072, {chunk} positions at a time",
      jax.value_and_grad(loss, (0, 1)),
      hidden,
      kernel,
      target,
    )
  config = preset("8b")
  made = plan(config, 4096, bf16, "full")
  hard = shape(jnp.bool_, config.vocab_size)
  batch = jax.eval_shape(lambda: rows(config, 1, 4096))

  def gradient(params, batch, hard):
    part = prepare_joint(made, made.key(jnp.int32(0)), batch, hard)
    return jax.grad(lambda p: loss_joint(made, p, {}, part)[0])(params)

  for dtype in (bf16, jnp.float32):
    temporary(
      "8B, 4096 clean tokens (8192 rows), full remat, computed in bfloat16,"
      f" {jnp.dtype(dtype)} parameters and gradients besides",
      gradient,
      jax.eval_shape(lambda d=dtype: new_params(config, d)),
      batch,
      hard,
    )


def adamw(params: Params):
  """The optimiser of a run; its packages are not on every GPU machine."""
  import ml_collections

  from train.optimizer import make_optimizer

  return make_optimizer(ml_collections.ConfigDict(ADAMW), 1000, params)


def step_seconds(
  config: ModelConfig, length: int, make_adamw, steps: int
) -> tuple[float, float]:
  """Median time of the joint step of one row, and its operations per second.

  Args:
    config: of the model, whose weights are random.
    length: clean tokens; as many noisy ones come with them.
    make_adamw: the optimiser for the shapes of the parameters.
    steps: timed; two more warm up.
  """
  made = plan(config, length, jnp.bfloat16, "full")
  optimizer = make_adamw(jax.eval_shape(lambda: new_params(config)))
  state = jax.jit(lambda: init_state(optimizer, new_params(config)))()
  step = make_step(made, optimizer)
  batch, hard = rows(config, 1, length), jnp.zeros(config.vocab_size, bool)
  seconds = []
  for _ in range(steps + 2):
    start = time.perf_counter()
    state, metrics = step(state, {}, batch, hard)
    jax.block_until_ready(metrics)
    seconds.append(time.perf_counter() - start)
  each = statistics.median(seconds[2:])
  # Clean queries see the row up to themselves; noisy ones what is before their
  # block, and the block.
  attended = length * (length + 1) / 2 + length * (length + BLOCK) / 2
  return each, flops.model_operations(config, 2 * length, attended) / each


def mfu() -> None:
  from train import watch

  length = 4096 if _SIZE.value != "tiny" else 64
  config = preset(_SIZE.value)
  each, rate = step_seconds(config, length, adamw, _STEPS.value)
  peak = flops.peak_operations()
  share = "peak unknown" if peak is None else f"MFU {100 * rate / peak:.1f} %"
  print(
    f"{jax.devices()[0].device_kind}, {_SIZE.value}, 1 row of {length} +"
    f" {length}: {1e3 * each:.1f} ms a step, {length / each:.0f} clean tokens/s,"
    f" {rate / 1e12:.3f} TFLOP/s, {share}, {watch.memory_gib():.1f} GiB"
  )


def main(_) -> None:
  print(
    f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores {platform.machine()},"
    f" Python {platform.python_version()}, jax {jax.__version__}"
  )
  {"cpu": cpu, "aot": aot, "mfu": mfu}[_PART.value]()


if __name__ == "__main__":
  app.run(main)
