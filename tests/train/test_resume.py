"""Runs that stop, move to other machines, and grow."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from absl import flags

from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import open_checkpoint
from tests.train.runs import (
  ROOT,
  command,
  environment,
  lines,
  quick_step,
  run,
  toy,
)
from train import checkpoints, data, loop, mesh, record, settings, watch
from train.configs import ar_to_diffusion_8b
from train.signals import Stopped
from train.start import Start


@pytest.fixture(autouse=True)
def _ordinary(ordinary):
  """Optax needs JAX's usual promotion."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """An undisturbed run of two streams, its rows and its last state."""
  seen, workdir = [], tmp_path_factory.mktemp("whole")
  with pytest.MonkeyPatch.context() as patch:
    spy(patch, seen)
    with jax.numpy_dtype_promotion("standard"):
      with jax.numpy_rank_promotion("allow"):
        state = loop.train(toy(data__shards=2), workdir)
  return workdir, state, seen


def spy(patch, seen: list) -> None:
  """Notes the tokens of every batch that is placed."""
  place = data.place_rows

  def noted(batch, *args):
    seen.append(batch["tokens"].copy())
    return place(batch, *args)

  patch.setattr(data, "place_rows", noted)


def stopped_at_4(whole, tmp_path):
  """The workdir as it was before the last checkpoint."""
  workdir = tmp_path / "again"
  shutil.copytree(whole[0], workdir)
  shutil.rmtree(workdir / "checkpoints" / "6")
  return workdir


def losses(workdir) -> list[float]:
  return [x["loss"] for x in lines(workdir) if "loss" in x]


def test_a_run_goes_on_with_other_machines(whole, tmp_path, monkeypatch):
  """4 devices for 2, microbatches, remat, chunks: same rows, same losses."""
  workdir, seen = stopped_at_4(whole, tmp_path), []
  monkeypatch.setattr(jax, "device_count", lambda: 4)
  spy(monkeypatch, seen)
  config = toy(
    data__shards=1, mesh__data=1, mesh__fsdp=1, mesh__tensor=4, accumulate=2,
    remat="full", chunk=64, log_every=1,
  )  # fmt: skip
  config.mesh.update({"data": 2, "fsdp": 1, "tensor": 2})
  loop.train(config, workdir)
  for a, b in zip(seen, whole[2][4:], strict=True):
    np.testing.assert_array_equal(a, b)
  assert [x["step"] for x in lines(workdir)] == [1, 2, 3, 4, 5, 6]
  np.testing.assert_allclose(losses(workdir), losses(whole[0]), rtol=1e-4)
  again = json.loads((workdir / "run.json").read_text())["resumed"]
  assert again[0]["step"] == 4 and again[0]["config"]["accumulate"] == 2


def test_a_plateau_is_prolonged_or_its_decay_begun(
  whole, tmp_path, monkeypatch
):
  """At step 4 of 6 the decay has begun; 12 steps have a plateau there."""
  monkeypatch.setattr(loop, "make_step", quick_step)
  workdir = stopped_at_4(whole, tmp_path)
  loop.train(toy(data__shards=2, steps=12, optimizer__decay=0.5), workdir)
  rates = [x["lr"] for x in lines(workdir)]
  assert len(rates) == 12 and rates[4] == rates[5] == pytest.approx(5e-3)
  assert rates[11] == pytest.approx(1e-4) and rates[8] < rates[6]
  with pytest.raises(UserError, match="12 is beyond config.steps 6"):
    loop.train(toy(data__shards=2), workdir)


def test_streams_go_on_in_any_number_of_processes(tmp_path):
  """4 streams, each at a place of its own: read by 2 processes, then 1 or 4."""
  opened = open_checkpoint(None)
  start = Start(opened.config, opened, False)
  path = tmp_path / "texts.jsonl"
  texts = ({"text": f"{i} ants " * (1 + i * i % 13)} for i in range(97))
  path.write_text("".join(json.dumps(text) + "\n" for text in texts))
  config = toy(batch_size=4, data__shards=4)

  def process(i, of):
    source = data.open_source(str(path), start.config, 0)
    each = 4 // of
    streams = range(i * each, (i + 1) * each)
    return data.make_batches(config, start, source, streams)

  def take(processes):
    return np.concatenate([next(p)["tokens"] for p in processes])

  whole = [process(0, 1)]
  expected = [take(whole) for _ in range(5)]
  two = [process(i, 2) for i in range(2)]
  for n in range(2):
    np.testing.assert_array_equal(take(two), expected[n])
  states = json.loads(json.dumps({**two[0].states(), **two[1].states()}))
  assert len(set(map(str, states.values()))) > 1
  states = {int(k): v for k, v in states.items()}
  for of in (1, 4):
    later = [process(i, of) for i in range(of)]
    for i, one in enumerate(later):
      each = 4 // of
      one.restore({k: states[k] for k in range(i * each, (i + 1) * each)})
    for n in range(2, 5):
      np.testing.assert_array_equal(take(later), expected[n])


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_two_processes_become_one(tmp_path, devices):
  """Slurm's words start 2 processes of 1 device; one of several goes on."""
  slurm = {
    "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2",
  }  # fmt: skip
  same = {"data__shards": 2, "optimizer__decay": 0.0}
  both = tmp_path / "both"
  started = [
    subprocess.Popen(
      command(both, steps=4, **same),
      cwd=ROOT,
      env=environment(
        JAX_NUM_CPU_DEVICES="1", SLURM_PROCID=str(i), SLURM_LOCALID="0", **slurm
      ),
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  for process in started:
    _, said = process.communicate(timeout=900)
    assert process.returncode == 0, said
  done = run(command(both, **same), JAX_NUM_CPU_DEVICES=str(devices))
  assert done.returncode == 0, done.stderr
  loop.train(toy(**same), tmp_path / "alone")
  found, expected = losses(both), losses(tmp_path / "alone")
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  assert len(found) == 6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(whole, tmp_path, monkeypatch, number):
  """In the middle of step 3, and while that of step 4 is being saved."""
  write, save = watch.Writer.write, checkpoints.Checkpoints.save

  def at_3(self, step, *args):
    write(self, step, *args)
    if step == 3:
      signal.raise_signal(number)

  def while_saving(self, *args):
    save(self, *args)
    signal.raise_signal(number)

  config = toy(data__shards=2)
  before = signal.getsignal(number)
  with monkeypatch.context() as patch:
    patch.setattr(watch.Writer, "write", at_3)
    with pytest.raises(Stopped, match="after step 4; the same command") as e:
      loop.train(config, tmp_path)
  assert e.value.number == number and signal.getsignal(number) is before
  assert (tmp_path / "checkpoints" / "4").is_dir()
  with monkeypatch.context() as patch:
    patch.setattr(checkpoints.Checkpoints, "save", while_saving)
    with pytest.raises(Stopped, match=r"goes on from .*checkpoints/6"):
      loop.train(config, tmp_path)
  state = loop.train(config, tmp_path)
  assert losses(tmp_path) == losses(whole[0])
  jax.tree.map(
    np.testing.assert_array_equal,
    jax.device_get(state.params),
    jax.device_get(whole[1].params),
  )


@pytest.fixture(scope="module")
def main():
  """The module of the command; its flags are no flags of other commands."""
  table = flags.FLAGS.__dict__["__flags"]
  before = dict(table)
  table.clear()
  module = importlib.import_module("train.main")
  table.clear()
  table.update(before)
  return module


@pytest.mark.parametrize(
  "raised, status, why",
  [
    (Stopped("stopped; go on", signal.SIGTERM), 143, "stopped; go on."),
    (Stopped("stopped; go on", signal.SIGINT), 130, "stopped; go on."),
    (KeyboardInterrupt(), 130, "the same command begins again"),
  ],
)
def test_the_status_says_which_signal_it_was(
  main, monkeypatch, capsys, raised, status, why
):
  def train(*_):
    raise raised

  monkeypatch.setattr(main.loop, "train", train)
  values = types.SimpleNamespace(value=None)
  monkeypatch.setattr(main, "_CONFIG", values)
  for name in ("_WORKDIR", "_INIT", "_EXPORT", "_COORDINATOR"):
    found = types.SimpleNamespace(value="x" if name == "_WORKDIR" else None)
    monkeypatch.setattr(main, name, found)
  with pytest.raises(SystemExit) as e:
    main.main([])
  assert e.value.code == status and why in capsys.readouterr().err


@pytest.mark.parametrize(
  "words, given",
  [
    ({}, None),
    ({"SLURM_STEP_NUM_TASKS": "1"}, None),
    ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
      "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, {"local_device_ids": None}),
    ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
      "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, {"local_device_ids": [0, 1, 2, 3]}),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, {"local_device_ids": None}),
  ],
)  # fmt: skip
def test_a_launchers_processes_join(main, monkeypatch, words, given):
  calls = []
  for name in (*main._LAUNCHED, "SLURM_STEP_TASKS_PER_NODE"):
    monkeypatch.delenv(name, raising=False)
  for name, value in words.items():
    monkeypatch.setenv(name, value)
  none = types.SimpleNamespace(value=None)
  monkeypatch.setattr(main, "_COORDINATOR", none)
  monkeypatch.setattr(
    jax.distributed, "initialize", lambda *a, **k: calls.append(k)
  )
  main.join_processes()
  assert calls == ([] if given is None else [given])

  def fail(**_):
    raise ValueError("no coordinator")

  monkeypatch.setattr(jax.distributed, "initialize", fail)
  if given is not None:
    with pytest.raises(UserError, match="could not be joined .no coordinator"):
      main.join_processes()


def test_the_8b_config_runs_on_the_published_256_gpus(monkeypatch):
  """32 processes of 8 GPUs each."""
  monkeypatch.setattr(jax, "process_count", lambda: 32)
  device = lambda i: types.SimpleNamespace(process_index=i // 8)
  devices = np.array([device(i) for i in range(256)])
  config = ar_to_diffusion_8b.get_config()
  sizes = [config.mesh[axis] for axis in mesh.AXES]
  sizes[sizes.index(-1)] = -256 // int(np.prod(sizes))
  grid = types.SimpleNamespace(
    devices=devices.reshape(np.abs(sizes)),
    shape=dict(zip(mesh.AXES, np.abs(sizes), strict=True)),
  )
  settings.check_batch(config, grid)


def found(config, init_from="m", **config_changes):
  return {
    "config": settings.flatten(config) | config_changes, "init_from": init_from
  }  # fmt: skip


def test_what_may_change_and_what_may_not(tmp_path):
  config = toy(data__shards=8)
  check = lambda before, now, init="m": record.check_run(
    tmp_path, before, now, init
  )
  old = found(config)
  assert check(old, toy(data__shards=2, chunk=7, remat="dots", steps=9)) == 8
  with pytest.raises(UserError, match="was 8, now 3, which does not divide"):
    check(old, toy(data__shards=3))
  for key, value in {"objective": "drafter", "seed": 4, "length": 8}.items():
    with pytest.raises(UserError, match=f"another run .*{key} was"):
      check(old, toy(data__shards=8, **{key: value}))


def test_keys_of_later_versions_have_their_defaults(tmp_path):
  config = toy()
  old = found(config)
  del old["config"]["corruption.fill"], old["config"]["drafter.top"]
  (tmp_path / "run.json").write_text(json.dumps(old))
  before = record.read_run(tmp_path)
  with pytest.raises(UserError, match="fill was False, now True"):
    record.check_run(tmp_path, before, config, "m")
  config.corruption.fill = False
  config.drafter.top = 200
  assert record.check_run(tmp_path, before, config, "m") == 1


def test_one_place_has_several_spellings(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path))
  check = lambda a, b, x, y: record.check_run(
    tmp_path, found(toy(data__source=a), x), toy(data__source=b), y
  )
  assert check("a.jsonl,b.jsonl", " ~/a.jsonl, b.jsonl", "m", "~/m/") == 1
  assert check("arithmetic", "arithmetic", "m", str(tmp_path / "m")) == 1
  with pytest.raises(UserError, match="another run"):
    check("a.jsonl", "b.jsonl", "m", "m")
  with pytest.raises(UserError, match="another run"):
    check("arithmetic", "arithmetic", None, "m")


_MEMORY = """
import json, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np, optax
from train import checkpoints, step
from train.configs import tiny
rss = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
def peak():
  text = open("/proc/self/status").read()
  return int(text.split("VmHWM:")[1].split()[0]) * 1024
make = lambda n, s: {"p": [jnp.ones((s, s), jnp.float32)] * n}
state = lambda n, s: step.init_state(optax.adam(1e-3), make(n, s))
one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
shaped = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one)
sizes = {"small": (1, 8), "large": (32, 1024)}
def open_folder(name):
  path = Path(sys.argv[1]) / name
  return checkpoints.Checkpoints(path, tiny.get_config().checkpoint)
if sys.argv[2] == "save":
  for name, size in sizes.items():
    folder = open_folder(name)
    folder.save(1, state(*size), {0: {}}, {})
    folder.wait()
    folder.close()
else:
  folder, size = open_folder(sys.argv[2]), sizes[sys.argv[2]]
  shapes = jax.tree.map(shaped, jax.eval_shape(lambda: state(*size)))
  before = rss()
  found = folder.restore(shapes)
  jax.block_until_ready(found)
  size = sum(x.nbytes for x in jax.tree.leaves(found))
  print(json.dumps({"before": before, "peak": peak(), "size": size}))
  folder.close()
"""


@pytest.mark.slow
def test_restoring_takes_the_state_and_little_more(tmp_path):
  """Of 384 MiB; what libraries take is seen with a state of some bytes."""

  def go(way):
    one = {"JAX_NUM_CPU_DEVICES": "1", "MALLOC_ARENA_MAX": "1"}
    arguments = [sys.executable, "-c", _MEMORY, str(tmp_path), way]
    done = run(arguments, PYTHONPATH=str(ROOT), **one)
    assert done.returncode == 0, done.stderr
    return done.stdout

  go("save")
  small, large = (json.loads(go(size)) for size in ("small", "large"))
  libraries = small["peak"] - small["before"]
  taken = large["peak"] - large["before"] - libraries
  assert large["size"] > 350 << 20
  assert taken < 1.1 * large["size"], (small, large)
