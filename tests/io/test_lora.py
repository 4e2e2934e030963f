"""PEFT folders in every spelling of LoRA on o_proj, against PEFT itself."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import open_checkpoint
from nemodiff_jax.io.lora import read_peft
from nemodiff_jax.io.peft_config import read_adapter_config
from tests import golden, helpers

CASES = json.loads(Path(golden.__file__).with_name("peft.json").read_text())
O_PROJ = ".self_attn.o_proj"


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda c: str(c["config"]))
def test_layers_and_scale_are_those_of_peft(tmp_path, case):
  given = {"r": 8, "lora_alpha": 8} | case["config"]
  (tmp_path / "adapter_config.json").write_text(json.dumps(given))
  read = lambda: read_adapter_config(tmp_path, "model.", 4)
  modules = case["modules"]
  if modules is None or not all(m.endswith(O_PROJ) for m in modules):
    with pytest.raises(UserError, match=r"target_modules should be \['o_proj"):
      read()
    return
  rank, alpha, scale, layers = read()
  assert (rank, alpha) == (given["r"], given["lora_alpha"])
  assert scale == pytest.approx(case["scale"], rel=1e-12)
  assert layers == [int(m.split(".")[2]) for m in modules]


def test_target_modules_as_one_name(tmp_path):
  """No regular expression that means anything, but what its author meant."""
  given = {"r": 8, "lora_alpha": 8, "target_modules": "o_proj"}
  (tmp_path / "adapter_config.json").write_text(json.dumps(given))
  assert read_adapter_config(tmp_path, "", 3)[3] == [0, 1, 2]


@pytest.fixture
def adapter(tmp_path, tiny):
  """Writes the tiny LoRA; returns a function that changes both files."""
  helpers.write_lora(tmp_path, tiny.lora, helpers.LORA_ALPHA)
  path = tmp_path / "adapter_model.safetensors"
  config = tmp_path / "adapter_config.json"

  def change(rename=None, keep=lambda name: True, more=(), **settings):
    tensors = load_file(path)
    rename = rename or (lambda name: name)
    changed = {rename(n): v for n, v in tensors.items() if keep(n)}
    save_file(changed | dict(more), path)
    given = json.loads(config.read_text())
    config.write_text(json.dumps(given | settings))
    return tmp_path

  return change


LAYER = "base_model.model.encoder.layers."


@pytest.mark.parametrize(
  "stem",
  [
    "base_model.model.model.layers.",
    "base_model.model.layers.",
    "base_model.model.model.language_model.layers.",
    "base_model.model.language_model.model.layers.",
    "encoder.layers.",
    "model.layers.",
    "layers.",
    "module.base_model.model.encoder.layers.",
    "_orig_mod.base_model.model.model.layers.",
    "base_model.model._orig_mod.model.layers.",
  ],
)
@pytest.mark.parametrize("name", ["", ".default", ".drafter"])
def test_names_of_tensors(adapter, tiny, stem, name):
  def rename(old):
    new = old.replace(LAYER, stem)
    return new.replace(".weight", f"{name}.weight")

  peft = read_peft(adapter(rename), tiny.config)
  for got, want in zip(peft.layers, tiny.lora, strict=True):
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


def test_layers_that_are_left_out_add_nothing(adapter, tiny):
  folder = adapter(keep=lambda n: ".layers.1." in n, layers_to_transform=[1])
  peft = read_peft(folder, tiny.config)
  a, b = peft.layers[0]
  assert a.shape == tiny.lora[0][0].shape and b.shape == tiny.lora[0][1].shape
  assert not a.any() and not b.any()
  np.testing.assert_array_equal(peft.layers[1][1], tiny.lora[1][1])


def test_full_names_follow_the_names_of_the_tensors(adapter, tiny):
  name = "model.layers.1.self_attn.o_proj"
  rename = lambda n: n.replace("encoder.", "model.")
  keep = lambda n: ".layers.1." in n
  folder = adapter(rename, keep, target_modules=[name])
  assert not read_peft(folder, tiny.config).layers[0][0].any()


def test_maps_of_an_image_tower_are_left_out(adapter, tiny):
  tower = "base_model.model.model.vision_tower.transformer.layers.0.attention"
  more = {f"{tower}.o_proj.lora_A.weight": np.ones((4, 3), np.float32)}
  rename = lambda n: n.replace("encoder.", "model.language_model.")
  assert len(read_peft(adapter(rename, more=more), tiny.config).layers) == 2


@pytest.mark.parametrize(
  "settings",
  [
    {"peft_type": "LORA", "task_type": "CAUSAL_LM", "lora_dropout": 0.1},
    {"bias": "none", "modules_to_save": None, "use_dora": False},
    {"modules_to_save": [], "layer_replication": None, "lora_bias": False},
    {"rank_pattern": {}, "alpha_pattern": {}, "init_lora_weights": True},
    {"rank_pattern": {"o_proj": 4}, "alpha_pattern": {"o_proj": 8}},
    {"init_lora_weights": "gaussian", "loftq_config": {}},
    {"use_qalora": False, "qalora_group_size": 16, "runtime_config": {}},
    {"exclude_modules": None, "layers_pattern": None, "revision": None},
    {"megatron_core": "megatron.core", "megatron_config": None},
  ],
)
def test_settings_that_change_nothing(adapter, tiny, settings):
  assert read_peft(adapter(**settings), tiny.config).scale == 2.0


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"peft_type": "LOHA"}, "peft_type should be 'LORA', got 'LOHA'"),
    ({"peft_type": "ADALORA"}, "peft_type should be 'LORA', got 'ADALORA'"),
    ({"peft_type": None}, "peft_type should be 'LORA', got None"),
    ({"use_dora": True}, "use_dora should be None, got True; only a plain"),
    ({"bias": "lora_only"}, "bias should be None, got 'lora_only'"),
    ({"lora_bias": True}, "lora_bias should be None, got True"),
    ({"modules_to_save": ["lm_head"]}, r"modules_to_save .* got \['lm_head'\]"),
    ({"layer_replication": [[0, 2]]}, "layer_replication should be None"),
    ({"target_parameters": ["x"]}, "target_parameters should be None"),
    ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens should be"),
    ({"use_qalora": True}, "use_qalora should be None, got True"),
    ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changes"),
    ({"init_lora_weights": "OLoRA"}, "init_lora_weights is 'OLoRA'"),
    ({"rank_pattern": {"layers.1": 2}}, "rank_pattern should be empty"),
    ({"alpha_pattern": {"layers.1": 9}}, "alpha_pattern should be empty"),
    ({"rank_pattern": [4]}, r"rank_pattern should be empty, got \[4\]"),
    ({"target_modules": None}, "got None, with .*neither a text nor a list"),
    ({"target_modules": "(o_proj"}, r"got '\(o_proj', with which"),
    (
      {"target_modules": ".*o_proj", "layers_to_transform": [0]},
      "layers_to_transform goes with a list",
    ),
    (
      {"target_modules": ["o_proj", "k_proj"]},
      r"which means \['self_attn.k_proj'\] too",
    ),
    ({"layers_to_transform": [0]}, "holds layer 1, which adapter_config.json"),
  ],
)
def test_settings_that_are_refused_by_name(adapter, tiny, settings, message):
  with pytest.raises(UserError, match=message):
    read_peft(adapter(**settings), tiny.config)


def test_two_adapters_in_one_file(adapter, tiny):
  a = tiny.lora[0][0]
  more = {f"{LAYER}0{O_PROJ}.lora_A.other.weight": a}
  with pytest.raises(UserError, match="lora_A of layer 0 is there twice"):
    read_peft(adapter(more=more), tiny.config)


@pytest.mark.parametrize(
  "name",
  [
    f"{LAYER}0{O_PROJ}.lora_magnitude_vector.weight",
    f"{LAYER}0{O_PROJ}.base_layer.weight",
    f"{LAYER}0{O_PROJ}.lora_B.bias",
    f"{LAYER}0.self_attn.q_proj.lora_A.weight",
    "base_model.model.lm_head.weight",
    f"{LAYER}0{O_PROJ}.lora_A.weights",
  ],
)
def test_other_tensors_are_refused_by_name(adapter, tiny, name):
  more = {name: np.ones((4, 4), np.float32)}
  with pytest.raises(UserError, match=f"o_proj only, found '{name}'"):
    read_peft(adapter(more=more), tiny.config)


def test_pickled_weights_are_refused_by_name(adapter, tiny):
  folder = adapter()
  path = folder / "adapter_model.safetensors"
  path.rename(folder / "adapter_model.bin")
  message = "weights are missing; adapter_model.bin is pickled and not read"
  with pytest.raises(UserError, match=message):
    read_peft(folder, tiny.config)


def test_the_folder_of_somebody_without_a_home(folder):
  opened = open_checkpoint(str(folder))
  with pytest.raises(
    UserError, match="'~no-such-user/x': there is no such folder"
  ):
    opened.load_lora("~no-such-user/x")
