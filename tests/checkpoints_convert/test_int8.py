"""Quantised folders: the same int8 as by loading, and no other weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints_convert import compare, convert, int8, lazy, trimode
from nemodiff_jax import api
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import open_checkpoint
from nemodiff_jax.io.lora import read_peft
from nemodiff_jax.nn.quantize import quantize_kernel
from nemodiff_jax.nn.sharding import make_mesh
from tests import helpers
from tests.checkpoints_convert.test_round_trip import STEMS, write_source


def write(target, source, layout, scheme="none"):
  convert.convert(str(source), str(target), layout, scheme=scheme)


@pytest.fixture(scope="module")
def folders8(tmp_path_factory):
  """A model that two devices can share: its folder, in int8, and that back."""
  path = tmp_path_factory.mktemp("int8")
  helpers.write_checkpoint(
    path / "float", helpers.make_tiny(vocab_size=96), lora=True
  )
  write(path / "orbax", path / "float", convert.to_orbax, "int8")
  write(path / "hf", path / "orbax", convert.to_hf)
  return path


def same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("layout", ["orbax", "hf"])
def test_a_quantised_folder_is_what_loading_would_make(folders8, layout):
  opened = open_checkpoint(str(folders8 / layout))
  expect = open_checkpoint(str(folders8 / "float")).load_params(
    jnp.bfloat16, "int8"
  )
  same(opened.load_params(jnp.bfloat16), expect)
  same(opened.load_params(jnp.bfloat16, "int8"), expect)
  mesh = make_mesh("tensor:2", opened.config)
  same(opened.load_params(jnp.bfloat16, mesh=mesh), expect)


@pytest.mark.parametrize("layout", ["orbax", "hf"])
def test_it_holds_no_kernel_in_full_precision(folders8, layout):
  opened = open_checkpoint(str(folders8 / layout))
  tensors, wanted = opened.match_tensors()
  for source, name in wanted.items():
    kind = {"kernel": "int8", "scale": "float32"}
    expect = kind.get(opened.table[name].path[-1], "float32")
    assert tensors.dtype(source) == expect
  assert not (opened.folder / "other").exists()
  lora = read_peft(opened.folder / "linear_spec_lora", opened.config)
  assert lora.layers  # Carried along.


def test_it_decodes_as_the_one_quantised_on_loading(folders8):
  prompts = [[7, 11, 13], [40, 41]]
  how = {"mode": "linear_spec", "max_new_tokens": 8}
  stored = api.load(str(folders8 / "orbax"))
  loaded = api.load(str(folders8 / "float"), quantize="int8")
  assert api.generate(stored, prompts, **how) == api.generate(
    loaded, prompts, **how
  )


@pytest.mark.parametrize("layout", STEMS)
def test_every_layout_keeps_its_names(tmp_path, tiny, layout):
  source, orbax, hf = (tmp_path / n for n in ("source", "orbax", "hf"))
  write_source(source, tiny, layout)
  write(orbax, source, convert.to_orbax, "int8")
  write(hf, orbax, convert.to_hf)
  expect = open_checkpoint(str(source)).load_params(scheme="int8")
  for folder in (orbax, hf):
    same(open_checkpoint(str(folder)).load_params(), expect)
  pair = open_checkpoint(str(orbax)), open_checkpoint(str(hf))
  assert not list(compare.compare(*pair, None))
  names = load_file(hf / "model.safetensors").keys()
  assert {STEMS[layout][1], STEMS[layout][1] + "_scale"} <= names


@pytest.mark.parametrize("block", [1, 3 * 48, 11 * 48, 32 * 48, 10**9])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_of_channels_give_the_same_bits(monkeypatch, block, dtype):
  monkeypatch.setattr(lazy, "_BLOCK", block)
  kernel = np.random.default_rng(0).standard_normal((67, 48))
  kernel = np.asarray(kernel * np.exp(kernel[:, :1] * 9), jnp.dtype(dtype))
  expect = quantize_kernel(jnp.asarray(kernel.T))
  got, scale = (part.read() for part in int8.quantized(lazy.lazy(kernel)))
  assert got.dtype == np.int8 and scale.dtype == np.float32
  np.testing.assert_array_equal(got, np.asarray(expect["kernel"]).T)
  np.testing.assert_array_equal(scale, np.asarray(expect["scale"]))


def test_what_needs_the_full_precision_is_refused(folders8):
  opened = open_checkpoint(str(folders8 / "orbax"))
  message = "its weights are int8; a dtype or a LoRA to merge needs the"
  with pytest.raises(UserError, match=message):
    convert.plan(opened, "bfloat16")


def test_training_starts_from_floats(folders8, tmp_path):
  message = "orbax: its weights are int8; a tri-mode checkpoint is made from"
  with pytest.raises(UserError, match=message):
    trimode.ar_to_trimode(
      str(folders8 / "orbax"), str(tmp_path / "target"), "9", 8
    )
  assert not list(tmp_path.iterdir())


def test_a_folder_that_does_not_say_so_is_refused(folders8, tmp_path):
  target = tmp_path / "unmarked"
  write(target, folders8 / "hf", convert.to_hf)
  config = json.loads((target / "config.json").read_text())
  del config["quantization_config"]
  (target / "config.json").write_text(json.dumps(config))
  with pytest.raises(
    UserError, match="'diffusion_head.weight_scale' says .* quantised as fp8 or"
  ):
    open_checkpoint(str(target)).load_params()


def test_a_float_kernel_among_int8_is_named(folders8, tmp_path):
  target = tmp_path / "mixed"
  write(target, folders8 / "hf", convert.to_hf)
  file = target / "model.safetensors"
  tensors = load_file(file)
  name = "diffusion_head.weight"
  tensors[name] = tensors[name].astype(np.float32)
  save_file(tensors, file)
  with pytest.raises(UserError, match=f"{name}' should be int8 .*got float32"):
    open_checkpoint(str(target)).load_params()
