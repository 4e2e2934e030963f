"""The same losses on any mesh and any number of processes."""

import socket
import subprocess
import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import open_checkpoint
from nemodiff_jax.nn.config import preset
from nemodiff_jax.nn.model import init_params
from tests.train.runs import ROOT, command, environment, lines, run, toy
from train import data, mesh, settings
from train.stack import stack_layers
from train.step import pick_block

SIZES = {
  "steps": 20,
  "batch_size": 8,
  "data.shards": 2,
  "checkpoint.every": 20,
  "model.num_heads": 4,
  "model.num_kv_heads": 2,
}

EVALUATION = {
  "eval.every": 20,
  "eval.questions": 1,
  "eval.max_new_tokens": 8,
  "eval.modes": ("ar", "linear_spec"),
  "checkpoint.best": "eval/linear_spec_tokens_per_forward",
}


def losses(workdir) -> list[float]:
  return [x["loss"] for x in lines(workdir) if "loss" in x]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("alone")
  done = run(command(workdir, **SIZES), JAX_NUM_CPU_DEVICES="1")
  assert done.returncode == 0, done.stderr
  return losses(workdir)


@pytest.mark.slow
def test_eight_devices_give_the_losses_of_one(alone, tmp_path):
  sizes = {"mesh.fsdp": 4, "mesh.tensor": 2}
  done = run(command(tmp_path, **SIZES, **sizes), JAX_NUM_CPU_DEVICES="8")
  assert done.returncode == 0, done.stderr
  found = losses(tmp_path)
  assert len(found) == 20
  np.testing.assert_allclose(found, alone, rtol=1e-5)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(alone, tmp_path):
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  started = [
    subprocess.Popen(
      command(
        tmp_path,
        f"--coordinator=127.0.0.1:{port}",
        "--processes=2",
        f"--export={tmp_path / 'export'}",
        f"--process={i}",
        **SIZES | EVALUATION,
      ),
      cwd=ROOT,
      env=environment(JAX_NUM_CPU_DEVICES="1"),
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  for process in started:
    _, said = process.communicate(timeout=900)
    assert process.returncode == 0, said
  found = losses(tmp_path)
  assert len(found) == 20
  np.testing.assert_allclose(found, alone, rtol=1e-5)
  assert open_checkpoint(str(tmp_path / "export")).load_params()
  assert "eval/linear_spec_accuracy" in lines(tmp_path)[-1]


def test_a_tensor_axis_across_processes_is_refused(monkeypatch):
  """Two processes of one device each, which would share every row."""
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  device = lambda i: types.SimpleNamespace(process_index=i)
  devices = np.array([device(0), device(1)])
  config = toy(data__shards=2)
  grid = lambda *sizes: types.SimpleNamespace(
    devices=devices.reshape(sizes),
    shape=dict(zip(mesh.AXES, sizes, strict=True)),
  )
  settings.check_batch(config, grid(1, 2, 1))
  with pytest.raises(UserError, match="tensor should lie within a process"):
    settings.check_batch(config, grid(1, 1, 2))


def test_every_large_array_lies_on_the_mesh_by_the_rules():
  """Layers are split along fsdp and tensor, norms are everywhere."""
  grid = jax.sharding.AbstractMesh((1, 4, 2), mesh.AXES)
  shapes = jax.eval_shape(
    lambda: stack_layers(
      init_params(preset("8b"), jax.random.key(0)), preset("8b").num_layers
    )
  )
  found = mesh.shardings(grid, shapes)
  layers = found["layers"]
  specs = {
    "q": layers["self_attn"]["q_proj"]["kernel"].spec,
    "o": layers["self_attn"]["o_proj"]["kernel"].spec,
    "down": layers["mlp"]["down_proj"]["kernel"].spec,
    "norm": layers["input_layernorm"]["weight"].spec,
    "embed": found["embed_tokens"]["embedding"].spec,
    "head": found["diffusion_head"]["kernel"].spec,
  }
  assert specs == {
    "q": P(None, "fsdp", "tensor"),
    "o": P(None, "tensor", "fsdp"),
    "down": P(None, "tensor", "fsdp"),
    "norm": P(),
    "embed": P("tensor", "fsdp"),
    "head": P("fsdp", "tensor"),
  }
  odd = {"diffusion_head": {"kernel": jax.ShapeDtypeStruct((8, 97), "f4")}}
  spec = mesh.shardings(grid, odd)["diffusion_head"]["kernel"].spec
  assert spec == P("fsdp", None)


def test_a_process_places_rows_by_their_index_in_the_batch(monkeypatch):
  """The second of two processes holds rows 2 and 3 of 4: noise follows them."""
  monkeypatch.setattr(data.jax, "process_count", lambda: 2)
  monkeypatch.setattr(data.jax, "process_index", lambda: 1)
  placed = []

  def put(sharding, x, shape):
    placed.append((sharding.spec, shape))
    return x

  monkeypatch.setattr(data.jax, "make_array_from_process_local_data", put)
  grid = mesh.make_mesh((1, -1, 1))
  own = {
    "tokens": np.ones((2, 8), np.int32), "supervised": np.ones((2, 8), bool)
  }  # fmt: skip
  assert data.place_rows(own, grid, 4).example.tolist() == [2, 3]
  assert data.place_rows(own, grid, 4, first=12).example.tolist() == [14, 15]
  assert {shape for _, shape in placed} == {(4,), (4, 8)}
  assert {spec[0] for spec, _ in placed} == {("data", "fsdp")}


def test_every_block_length_is_drawn_alike_often():
  """Each process and each resumed run draws the same one."""
  drawn = [pick_block((8, 16, 32), 5, step) for step in range(3000)]
  for length in (8, 16, 32):  # 5 standard deviations of 26.
    assert abs(drawn.count(length) - 1000) < 130
  assert [pick_block((8, 16, 32), 5, step) for step in range(50)] == drawn[:50]
  assert [pick_block((8, 16, 32), 6, step) for step in range(50)] != drawn[:50]
