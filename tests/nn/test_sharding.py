"""One model over several devices: results, placement, communication."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from nemodiff_jax import api
from nemodiff_jax.decode import driver
from nemodiff_jax.decode.abstract import abstract_decode
from nemodiff_jax.decode.config import RowSettings, decode_config
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.tensors import TensorFolder
from nemodiff_jax.nn.config import preset
from nemodiff_jax.nn.model import Transformer, abstract_params
from nemodiff_jax.nn.sharding import make_mesh, spec
from tests import helpers

MODES = {
  "ar": {},
  "diffusion": {"block_length": 8, "threshold": 0.5},
  "linear_spec": {"block_length": 8},
  "quadratic_spec": {"block_length": 8},
}
SIZES, LIMITS = (3, 17, 30), (12, 20, 16)
SEED = 2  # Some drafts are accepted, in both speculative modes.
SPLIT = {"num_heads": 16, "num_kv_heads": 8, "vocab_size": 96}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A tiny model that can be split in eight, with a LoRA."""
  path = tmp_path_factory.mktemp("split")
  helpers.write_checkpoint(path, helpers.make_tiny(SEED, **SPLIT), lora=True)
  return str(path)


def decode(folder, mode, mesh=None, scheme="none"):
  model = api.load(folder, quantize=scheme, mesh=mesh)
  config = decode_config(model.config, mode, **MODES[mode])
  prompts = helpers.prompts_of(model.config, SIZES)
  rows = [RowSettings(max_new_tokens=n, logprobs=2) for n in LIMITS]
  return list(api.generate_rows(model, config, prompts, rows, len(rows)))


def same(one, many):
  for a, b in zip(one, many, strict=True):
    assert a.token_ids == b.token_ids
    assert (a.nfe, a.accepted, a.finish_reason) == (
      b.nfe,
      b.accepted,
      b.finish_reason,
    )
    np.testing.assert_allclose(a.logprobs.token, b.logprobs.token, atol=1e-4)


@pytest.mark.parametrize(
  ("mode", "count", "scheme"),
  [
    ("ar", 8, "int8"),
    *(
      pytest.param(mode, count, scheme, marks=pytest.mark.slow)
      for mode in MODES
      for count in (2, 4, 8)
      for scheme in ("none", "int8")
    ),
  ],
)
def test_devices_together_equal_one(folder, mode, count, scheme):
  one = decode(folder, mode, scheme=scheme)
  same(one, decode(folder, mode, f"tensor:{count}", scheme))
  if mode.endswith("_spec"):
    assert max(n for o in one for n in o.accepted) > 1


@pytest.mark.slow
def test_a_tied_head_is_shared_too(tmp_path):
  tied = helpers.make_tiny(tie_embeddings=True, **SPLIT)
  helpers.write_checkpoint(tmp_path, tied)
  same(decode(str(tmp_path), "ar"), decode(str(tmp_path), "ar", "tensor:2"))


@pytest.mark.parametrize("scheme", ["none", "int8"])
def test_each_device_reads_and_holds_its_part(folder, scheme, monkeypatch):
  read, parts = TensorFolder.read, []

  class Watched:
    def __init__(self, lazy):
      self.lazy = lazy

    def __getitem__(self, index):
      part = self.lazy[index]
      parts.append(part.nbytes)
      return part

  def watched(self, names, sliced=False):
    for name, lazy in read(self, names, sliced):
      yield name, Watched(lazy)

  whole = api.load(folder, lora="none").weights.params
  nbytes = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
  norms = sum(x.nbytes for x in jax.tree.leaves(whole) if x.ndim == 1)
  matrices = [x.nbytes for x in jax.tree.leaves(whole) if x.ndim == 2]
  # Before the drafter is read: it is small, and not counted here.
  monkeypatch.setattr(TensorFolder, "read", watched)
  model = api.load(folder, lora="none", quantize=scheme, mesh="tensor:4")
  # JAX may ask for a part that several devices share once, or for each.
  assert sum(matrices) + norms <= sum(parts) <= sum(matrices) + 4 * norms
  assert max(parts) == max(matrices) // 4

  params = model.weights.params
  for device in model.module.mesh.devices:
    held = [
      s.data
      for x in jax.tree.leaves(params)
      for s in x.addressable_shards
      if s.device == device
    ]
    if scheme == "none":
      assert nbytes(held) == sum(matrices) // 4 + norms
    assert nbytes(held) < nbytes(params) / 4 + nbytes(params) / 16


@pytest.mark.parametrize("scheme", ["none", "int8"])
def test_every_parameter_has_a_rule(scheme):
  params = abstract_params(preset("14b"), jnp.bfloat16, scheme)
  rules = {
    tuple(k.key for k in path): spec(tuple(k.key for k in path))
    for path, _ in jax.tree_util.tree_leaves_with_path(params)
  }
  out, inside = P(None, "tensor"), P("tensor")
  for path, rule in rules.items():
    name = path[-2]
    if path[-1] == "weight":
      assert rule == P()
    elif name in ("o_proj", "down_proj"):
      assert rule == (inside if path[-1] == "kernel" else P())
    else:
      assert rule == (inside if path[-1] == "scale" else out)
  assert rules["layers_39", "mlp", "up_proj", "kernel"] == out


def collectives(text: str) -> dict[str, int]:
  """How often each collective stands in a compiled program."""
  names = re.findall(
    r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)"
    r"(?:-start)?\(",
    text,
  )
  return {name: names.count(name) for name in names}


@pytest.mark.parametrize("mode", MODES)
def test_a_pass_communicates_twice_a_layer_and_at_both_ends(mode):
  config = helpers.make_tiny(**SPLIT).config
  module = Transformer(config, mesh=make_mesh("tensor:2", config))
  how = decode_config(config, mode, **MODES[mode])
  args = abstract_decode(module, how, prompt=30)[:3]
  text = driver.one_pass.lower(*args).compile().as_text()
  found = collectives(text)
  assert found.pop("all-reduce") == 2 * config.num_layers
  heads = 2 if mode == "quadratic_spec" else 1  # It reads the head twice.
  assert 2 <= found.pop("all-gather") <= 1 + heads  # XLA may join the two.
  assert not found


def test_a_tied_head_adds_one_sum():
  config = helpers.make_tiny(tie_embeddings=True, **SPLIT).config
  module = Transformer(config, mesh=make_mesh("tensor:2", config))
  args = abstract_decode(module, decode_config(config, "ar"), prompt=30)[:3]
  text = driver.one_pass.lower(*args).compile().as_text()
  assert collectives(text) == {
    "all-reduce": 2 * config.num_layers + 1,
    "all-gather": 1,
  }


@pytest.mark.parametrize(
  ("mesh", "message"),
  [
    ("tensor", "mesh should be 'tensor:n', n devices, got 'tensor'"),
    ("tensor:0", "mesh should be 'tensor:n'"),
    ("tensor:x", "mesh should be 'tensor:n'"),
    ("data:2", "mesh should be 'tensor:n', n devices, got 'data:2'"),
    ("tensor:9", r"mesh 'tensor:9' needs 9 devices, found 8 \(cpu\)"),
    ("tensor:4", "num_kv_heads should be a multiple of 4, got 2"),
    ("tensor:2", "vocab_size should be a multiple of 2, got 97"),
  ],
)
def test_a_mesh_that_cannot_be_had_is_refused(tiny, mesh, message):
  with pytest.raises(UserError, match=message):
    make_mesh(mesh, tiny.config)
