"""Folders in every layout, and every way in which one can be broken."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nemodiff_jax import api
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import open_checkpoint
from tests import helpers


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("shards", [1, 3])
def test_loads_what_was_written(tmp_path, tiny, shards):
  helpers.write_checkpoint(tmp_path, tiny, shards=shards)
  opened = open_checkpoint(str(tmp_path))
  assert opened.config == tiny.config and opened.tokenizer is None
  same(opened.load_params(), tiny.params)
  assert opened.load_lora() is None


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_casts_straight_to_the_target(tmp_path, tiny, stored, dtype):
  helpers.write_checkpoint(tmp_path, tiny, dtype=stored)
  params = open_checkpoint(str(tmp_path)).load_params(dtype)
  want = jax.tree.map(
    lambda x: (
      np.asarray(x).astype(stored).astype(ml_dtypes.bfloat16)
      if dtype == "bfloat16"
      else np.asarray(x).astype(stored).astype(np.float32)
    ),
    tiny.params,
  )
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
  same(params, want)


LAYOUTS = {
  "ministral3": ("model.", "lm_head.weight"),
  "multimodal": ("language_model.model.", "language_model.lm_head.weight"),
  "newer multimodal": ("model.language_model.", "lm_head.weight"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_layouts(tmp_path, tiny, layout, caplog):
  helpers.write_checkpoint(tmp_path, tiny)
  stem, head = LAYOUTS[layout]
  tensors = load_file(tmp_path / "model.safetensors")
  renamed = {
    head if n.startswith("diff") else n.replace("encoder.", stem): v
    for n, v in tensors.items()
  }
  config = json.loads((tmp_path / "config.json").read_text())
  config["model_type"] = "ministral3"
  if layout != "ministral3":
    renamed["vision_tower.patch_conv.weight"] = np.ones(3, np.float32)
    renamed["multi_modal_projector.norm.weight"] = np.ones(3, np.float32)
    config = {"model_type": "mistral3", "text_config": config}
  save_file(renamed, tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text(json.dumps(config))
  with caplog.at_level("INFO"):
    same(open_checkpoint(str(tmp_path)).load_params(), tiny.params)
  assert ("vision_tower.patch_conv.weight" in caplog.text) == (
    layout != "ministral3"
  )


def test_tied_embeddings_need_no_head(tmp_path):
  tied = helpers.make_tiny(tie_embeddings=True)
  helpers.write_checkpoint(tmp_path, tied)
  assert "diffusion_head" not in tied.params
  same(open_checkpoint(str(tmp_path)).load_params(), tied.params)
  tensors = load_file(tmp_path / "model.safetensors")
  tensors["diffusion_head.weight"] = tensors["encoder.embed_tokens.weight"]
  save_file(tensors, tmp_path / "model.safetensors")
  model = api.load(str(tmp_path))  # A head that is there all the same.
  out = api.generate(model, [[9, 8]], mode="ar", max_new_tokens=3)
  assert out[0].nfe == 3


def test_lora_beside_the_checkpoint_is_found(folder, tiny, tmp_path):
  opened = open_checkpoint(str(folder))
  want = tiny.weights(lora=True).lora
  same(opened.load_lora(), want)
  assert opened.load_lora("none") is None
  helpers.write_lora(tmp_path, tiny.lora, 2 * helpers.LORA_ALPHA)
  other = opened.load_lora(str(tmp_path))
  np.testing.assert_allclose(other[1].b, want[1].b * 2)
  config = json.loads((tmp_path / "adapter_config.json").read_text())
  config["use_rslora"] = True
  (tmp_path / "adapter_config.json").write_text(json.dumps(config))
  np.testing.assert_allclose(
    opened.load_lora(str(tmp_path))[1].b, want[1].b * 4, rtol=1e-6
  )


@pytest.fixture
def broken(tmp_path, tiny):
  """A sharded checkpoint to damage, and its index."""
  helpers.write_checkpoint(tmp_path, tiny, shards=2)
  return tmp_path


def edit(path, change):
  tensors = load_file(path)
  change(tensors)
  save_file(tensors, path)


def fails(path, message):
  with pytest.raises(UserError, match=message):
    open_checkpoint(str(path)).load_params()


def test_missing_shard(broken):
  (broken / "model-00002-of-00002.safetensors").unlink()
  fails(broken, "model-00002-of-00002.safetensors: this shard is named")


def test_truncated_shard(broken):
  path = broken / "model-00001-of-00002.safetensors"
  path.write_bytes(path.read_bytes()[:-100])
  fails(broken, "model-00001.*not a complete safetensors file.*again")


def test_shard_without_a_tensor_of_the_index(broken):
  edit(
    broken / "model-00002-of-00002.safetensors",
    lambda t: t.pop(next(iter(t))),
  )
  fails(broken, "should be here by model.safetensors.index.json, but is not")


def test_unreadable_index(broken):
  (broken / "model.safetensors.index.json").write_text('{"weight_map": 3}')
  fails(broken, "index.json: expected JSON with a weight_map")


def test_index_that_names_the_wrong_shard_or_another_folder(broken):
  path = broken / "model.safetensors.index.json"
  index = json.loads(path.read_text())
  name, file = next(iter(index["weight_map"].items()))
  other = file.replace("00001-of", "00002-of")
  index["weight_map"][name] = other
  path.write_text(json.dumps(index))
  fails(broken, f"{other}: tensor '{name}' should be here")
  index["weight_map"][name] = "../" + file
  path.write_text(json.dumps(index))
  fails(broken, "index.json: .*should be the name of a .safetensors file")


@pytest.fixture
def single(tmp_path, tiny):
  helpers.write_checkpoint(tmp_path, tiny)
  return tmp_path


NORM = "encoder.layers.1.input_layernorm.weight"


def test_tensor_of_wrong_shape(single):
  edit(
    single / "model.safetensors",
    lambda t: t.update({NORM: np.ones(49, np.float32)}),
  )
  fails(single, rf"{NORM}' should have shape \(48,\) by config.json, got \(49,")


def test_unknown_tensor_names_the_nearest(single):
  edit(
    single / "model.safetensors",
    lambda t: t.update({NORM.replace("norm", "nrom"): np.ones(48, np.float32)}),
  )
  fails(single, rf"unknown tensor .*layernrom.* \(nearest known name: '{NORM}")


def test_missing_tensor(single):
  edit(single / "model.safetensors", lambda t: t.pop(NORM))
  fails(single, f"1 of 21 tensors are missing, first '{NORM}'")


def test_tensor_twice(single):
  edit(
    single / "model.safetensors",
    lambda t: t.update({NORM.replace("encoder", "model"): t[NORM] * 1}),
  )
  fails(single, f"tensor '{NORM}' is there twice")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_weight_is_named_with_its_place(single, value):
  edit(single / "model.safetensors", lambda t: t[NORM].__setitem__(7, value))
  fails(single, rf"tensor '{NORM}' holds NaN or Inf at \[7\]")


def test_quantised_tensor(single):
  edit(
    single / "model.safetensors",
    lambda t: t.update({NORM: np.ones(48, np.int8)}),
  )
  fails(single, f"{NORM}' should be one of .* got I8; quantised")


def test_no_weights(single):
  (single / "model.safetensors").unlink()
  fails(single, "expected model.safetensors or model.safetensors.index.json")


def test_config_of_another_architecture(single):
  config = json.loads((single / "config.json").read_text())
  (single / "config.json").write_text(
    json.dumps(config | {"model_type": "bert"})
  )
  fails(single, "config.json: .*model_type should be one of .* got 'bert'")


@pytest.mark.parametrize("text", ["{", "[1]", '{"model_type": "ministral3"}'])
def test_unreadable_config(single, text):
  (single / "config.json").write_text(text)
  fails(single, "config.json: ")


def test_config_with_a_value_of_another_type(single):
  config = json.loads((single / "config.json").read_text())
  config["hidden_size"] = "48"
  (single / "config.json").write_text(json.dumps(config))
  fails(single, "config.json: ")


def test_config_without_heads(single):
  config = json.loads((single / "config.json").read_text())
  config |= {"num_attention_heads": 0, "head_dim": None}
  (single / "config.json").write_text(json.dumps(config))
  fails(single, "num_heads should be a positive whole number, got 0")


def test_folder_without_config(tmp_path):
  fails(tmp_path, "config.json: expected a checkpoint folder, no such file")


LORA = "base_model.model.encoder.layers.{}.self_attn.o_proj.lora_{}.weight"


def lora_fails(folder, message):
  with pytest.raises(UserError, match=message):
    open_checkpoint(str(folder)).load_lora()


@pytest.fixture
def with_lora(tmp_path, tiny):
  helpers.write_checkpoint(tmp_path, tiny, lora=True)
  return tmp_path, tmp_path / "linear_spec_lora" / "adapter_model.safetensors"


def test_lora_of_another_shape(with_lora):
  folder, path = with_lora
  wrong = {LORA.format(1, "A"): np.zeros((4, 65), np.float32)}
  edit(path, lambda t: t.update(wrong))
  lora_fails(folder, r"layer 1 should have lora_A \[4, 64\].*another model")


def test_lora_of_other_dimensions(with_lora):
  folder, path = with_lora
  flat = {LORA.format(0, "B"): np.zeros(48, np.float32)}
  edit(path, lambda t: t.update(flat))
  lora_fails(folder, r"layer 0 should have .* got \(4, 64\) and \(48,\)")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"r": 8}, r"lora_A \[8, 64\] .* got \(4, 64\).* says another r"),
    ({"r": 0}, "r should be a positive whole number, got 0"),
    ({"r": "4"}, "r should be a positive whole number, got '4'"),
    ({"lora_alpha": None}, "lora_alpha should be a number, got None"),
    ({"lora_alpha": float("nan")}, "lora_alpha should be a number, got nan"),
    ({"rank_pattern": {"x": 2}}, "rank_pattern should be empty, got .*differ"),
    ({"alpha_pattern": {"x": 2}}, "alpha_pattern should be empty, got {'x': 2"),
  ],
)
def test_lora_with_a_wrong_config(with_lora, change, message):
  folder, path = with_lora
  config = path.parent / "adapter_config.json"
  config.write_text(json.dumps(json.loads(config.read_text()) | change))
  lora_fails(folder, message)


def test_lora_on_other_modules(with_lora):
  folder, path = with_lora
  name = LORA.format(0, "A").replace("o_proj", "q_proj")
  edit(path, lambda t: t.update({name: np.zeros((4, 48), np.float32)}))
  lora_fails(folder, "expected LoRA on self_attn.o_proj only, found .*q_proj")
  config = folder / "linear_spec_lora" / "adapter_config.json"
  given = json.loads(config.read_text())
  config.write_text(json.dumps(given | {"target_modules": ["q_proj"]}))
  lora_fails(folder, r"target_modules should be \['o_proj'\], got \['q_proj'\]")


def test_lora_with_missing_or_extra_layers(with_lora):
  folder, path = with_lora
  extra = {LORA.format(2, "A"): np.zeros((4, 64), np.float32)}
  edit(path, lambda t: t.update(extra))
  lora_fails(folder, "holds layer 2, but the model has only 2 layers")
  edit(path, lambda t: (t.pop(LORA.format(2, "A")), t.pop(LORA.format(1, "B"))))
  lora_fails(folder, "lora_A or lora_B of layer 1 is missing")


def test_lora_with_nan(with_lora):
  folder, path = with_lora
  edit(path, lambda t: t[LORA.format(0, "B")].__setitem__((0, 0), np.nan))
  lora_fails(folder, "lora_B.weight' holds NaN or Inf")


def test_lora_folder_without_files(with_lora, tmp_path):
  folder, path = with_lora
  path.unlink()
  lora_fails(
    folder, "adapter_model.safetensors: the LoRA's weights are missing"
  )
  (path.parent / "adapter_config.json").write_text("{}")
  lora_fails(folder, "expected JSON with r and lora_alpha")
  (path.parent / "adapter_config.json").unlink()
  lora_fails(folder, "expected a PEFT LoRA folder, no such file")
