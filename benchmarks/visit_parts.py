"""What `benchmarks.gpu_visit` measures, part by part; a process for each.

A part gives rows, each with `what` was done and figures: `value` in `unit`, and
`predicted`, where there is a prediction for the device. It imports what it alone
needs, so that a package that is not there ends one part only.
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import roofline
from benchmarks.programs import Program, on_device
from nemodiff_jax.decode.config import MODES, RowSettings, decode_config
from nemodiff_jax.evaluate import measure
from nemodiff_jax.nn.config import preset
from pallas_kernels.chips import Chip
from pallas_kernels.range_attention import range_attention
from pallas_kernels.range_attention.dispatch import resolve
from tests.pallas_kernels.cases import (
  CASES,
  SLOW_CASES,
  Case,
  dense,
  draw_ends,
  make,
)

Row = dict[str, Any]
QUESTIONS = (
  "A farm has 3 cows and 5 hens. How many legs are there?",
  "What is 12 + 7 - 5 + 9?",
  "How long is it from 9:15 to 11:40?",
)
LOOPS = (
  ("ar loop, per pass", "ar", None, "none"),
  ("linear_spec loop, per pass", "linear_spec", None, "none"),
  ("quadratic_spec loop, C = 8, per pass", "quadratic_spec", 8, "none"),
  ("quadratic_spec loop, C = 16, per pass", "quadratic_spec", 16, "none"),
  ("ar loop, int8, per pass", "ar", None, "int8"),
)


def chip() -> Chip | None:
  """The data sheet of the device, where it is known."""
  kind = jax.devices()[0].device_kind
  return next((c for c in roofline.CARDS if c.name == kind), None)


def suite(toy: bool) -> Iterator[Row]:
  """The op on the device in bfloat16, against float64 on the host."""
  for case in CASES[:2] if toy else CASES + SLOW_CASES:
    yield guarded(str(case), functools.partial(check, case))


def check(case: Case) -> Row:
  """Errors of one call, each over what rounding alone can make."""
  q, k, v, _, _ = make(case.shape, 0)
  k_end = draw_ends(case, np.random.default_rng(1))
  q, k, v = (np.array(x, jnp.bfloat16) for x in (q * case.scale, k, v))
  mask = np.arange(k.shape[1]) < k_end[..., None]
  want, want_lse = dense(q, k, v, mask)
  size, _ = dense(q, k, abs(v), mask)
  for row, end in enumerate(k_end.max(1)):
    k[row, max(end, 0) :] = v[row, max(end, 0) :] = np.nan
  out, lse = jax.jit(range_attention)(q, k, v, k_end)
  out, lse = np.asarray(out, np.float64), np.asarray(lse, np.float64)
  seen = k_end > 0
  off = (abs(out - want) / (2**-8 * (abs(want) + size) + 1e-5)).max()
  log = abs(lse[seen] - want_lse[seen]).max()
  empty = (out[~seen] == 0).all() and np.isneginf(lse[~seen]).all()
  right = bool(off <= 1 and log <= 1e-4 * (1 + abs(want_lse[seen]).max()))
  how = resolve(None, q.shape, k.shape, q.dtype)
  return {
    "value": float(off),
    "unit": f"of the error allowed, by {how}",
    "lse error": float(log),
    "right": right and bool(empty),
  }


def token_ids(toy: bool) -> Iterator[tuple[str, list[list[int]]]]:
  """What the embedded model says in each mode, greedily, in float32."""
  from nemodiff_jax import api

  model = api.load(None)
  settings = RowSettings(max_new_tokens=8 if toy else 48)
  prompts = [
    api.prepare(model, [{"role": "user", "content": q}], settings)
    for q in QUESTIONS[: 1 if toy else None]
  ]
  rows = [settings] * len(prompts)
  for mode in MODES[: 1 if toy else None]:
    config = decode_config(model.config, mode)
    outs = api.generate_rows(model, config, prompts, rows, len(prompts))
    yield mode, [o.token_ids for o in outs]


def modes(toy: bool) -> Iterator[Row]:
  """Token ids of four modes on the device, against those of a CPU."""
  peer = subprocess.Popen(
    [sys.executable, "-m", __spec__.name, "ids", *["--toy"] * toy],
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    text=True,
  )
  for (mode, got), line in zip(token_ids(toy), peer.stdout or (), strict=True):
    want = dict([json.loads(line)])[mode]
    same = sum(a == b for a, b in zip(want, got, strict=True))
    unit = f"of {len(want)} texts with the CPU's ids"
    yield row(mode, same, unit) | {"right": same == len(want)}
  peer.wait()


def floors(toy: bool) -> Iterator[Row]:
  """Copy bandwidth and matrix-product rate."""
  found, known = measure.floor(toy), chip()
  costs = roofline.COSTS
  copy = known and known.bandwidth * costs.copy / 1e9
  rate = known and known.flops * costs.rate / 1e12
  yield row("copy", found.bandwidth / 1e9, "GB/s", copy)
  yield row("bfloat16 product", found.flops / 1e12, "TFLOP/s", rate)


def attention(toy: bool) -> Iterator[Row]:
  """Range attention, then its peers."""
  from benchmarks import attention_gpu

  known, model = chip(), preset("8b")
  calls = attention_gpu.TOY_CALLS if toy else attention_gpu.CALLS
  for name, f in attention_gpu.implementations(toy).items():
    for call in calls:
      t, b, s, _ = call
      likely = None
      if known:
        likely = 1e6 * roofline.predict_attention(known, model, t, b, s)

      def one(call=call, f=f, likely=likely):
        taken = attention_gpu.call_seconds(f, call, toy)
        return row("", taken * 1e6, "us", likely)

      yield guarded(f"{name}, T {t}, batch {b}, context {s}", one)


def decode(toy: bool) -> Iterator[Row]:
  """The compiled loops of the 8B shape, batch 1, per pass."""
  from benchmarks import decode_gpu

  known, model = chip(), preset("tiny" if toy else "8b")
  room = {"context": 32, "capacity": 256, "new": 32} if toy else {}
  make = functools.partial(Program, model, **room)
  weights = on_device(make("linear_spec").weights())

  def one(program: Program, likely: float | None) -> Row:
    used = weights
    if program.scheme != "none":
      used = on_device(program.weights())
    elif program.mode != "linear_spec":
      used = dataclasses.replace(weights, lora=None)
    taken = decode_gpu.loop_seconds(program, used)
    return row("", taken * 1e3, "ms", likely)

  for what, mode, block, scheme in LOOPS:
    program = make(mode, block=block, scheme=scheme)
    likely = predicted_pass(known, program) * 1e3 if known else None
    yield guarded(what, functools.partial(one, program, likely))


def predicted_pass(known: Chip, program: Program) -> float:
  """Seconds of a pass of a loop at its first token, by the roofline."""
  size = program.decoder.block
  return roofline.predict(
    known,
    program.model,
    program.mode,
    size * (size + 1) if program.mode == "quadratic_spec" else size,
    context=program.context,
    weight_item=1 if program.scheme == "int8" else 2,
  ).seconds


def training(toy: bool) -> Iterator[Row]:
  """The joint step of the 3B shape, AdamW in float32, bfloat16 inside."""
  import optax

  from benchmarks import train

  size, length = ("tiny", 64) if toy else ("3b", 4096)
  each, rate = train.step_seconds(
    preset(size), length, lambda _: optax.adamw(1e-4), 2 if toy else 5
  )
  what = f"{size}, 1 row of {length} + {length}"
  yield row(f"{what}, a step", each * 1e3, "ms")
  yield row(f"{what}, operations of the model", rate / 1e12, "TFLOP/s")


PARTS = {
  "suite": suite, "modes": modes, "floors": floors, "attention": attention,
  "decode": decode, "train": training,
}  # fmt: skip


def row(what: str, value: float, unit: str, predicted=None) -> Row:
  """One figure."""
  return {"what": what, "value": value, "unit": unit, "predicted": predicted}


def guarded(what: str, f) -> Row:
  """f()'s row; an error is a row too, so that the next ones are tried."""
  try:
    return f() | {"what": what}
  except Exception as e:
    return {"what": what, "error": f"{type(e).__name__}: {e}"[:300]}


def main() -> None:
  """Runs one part and appends its rows to a file, each as soon as it is there."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("part", choices=[*PARTS, "ids"])
  parser.add_argument("--out", type=Path)
  parser.add_argument("--toy", action="store_true")
  args = parser.parse_args()
  if args.part == "ids":
    for pair in token_ids(args.toy):
      print(json.dumps(pair), flush=True)
    return
  device = jax.devices()[0]
  if device.platform != "gpu" and not args.toy:
    raise SystemExit(
      f"needs a GPU, found {device.platform}; --toy runs anywhere"
    )
  jax.config.update("jax_compilation_cache_dir", str(args.out / "compiled"))
  about = {
    "part": args.part,
    "toy": args.toy,
    "device": device.device_kind,
    "jax": jax.__version__,
  }
  with (args.out / "results.jsonl").open("a", encoding="utf-8") as file:
    for found in PARTS[args.part](args.toy):
      if not math.isfinite(found.get("value", 0)):
        found |= {"error": f"not finite: {found.pop('value')}"}
      at = {"time": time.strftime("%Y-%m-%d %H:%M:%S")}
      file.write(json.dumps(about | at | found) + "\n")
      file.flush()
      os.fsync(file.fileno())


if __name__ == "__main__":
  main()
