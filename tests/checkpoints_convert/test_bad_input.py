"""Every fault of a source or a target: a clear error, and no target."""

import json
import os
import resource
import shutil
import sys

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from checkpoints_convert import compare, convert, folders, lazy, trimode, values
from checkpoints_convert.orbax_folder import write_params
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import open_checkpoint
from tests import helpers

NORM = "encoder.layers.1.input_layernorm.weight"
KERNEL = "encoder.layers.0.mlp.up_proj.weight"
SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture
def source(tmp_path, tiny):
  """A sharded checkpoint to damage."""
  helpers.write_checkpoint(tmp_path / "hf", tiny, lora=True, shards=2)
  return tmp_path / "hf"


def fails(source, message, **how):
  """Both directions refuse, and nothing is left beside the source."""
  for layout in (convert.to_orbax, convert.to_hf):
    target = source.parent / "target"
    with pytest.raises(UserError, match=message):
      convert.convert(str(source), str(target), layout, **how)
    assert list(source.parent.iterdir()) == [source]


def edit(folder, change):
  """Changes the tensors of the shard that holds what is to be changed."""
  for path in folder.glob("*.safetensors"):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
  index = folder / "model.safetensors.index.json"
  files = folder.glob("*.safetensors")
  weight_map = {n: f.name for f in files for n in load_file(f)}
  index.write_text(json.dumps({"weight_map": weight_map}))


def put(name, value):
  return lambda tensors: name in tensors and tensors.update({name: value})


def test_truncated_shard(source):
  os.truncate(source / SHARD, (source / SHARD).stat().st_size - 100)
  fails(source, f"{SHARD}: not a complete safetensors file")


def test_index_that_names_a_missing_file(source):
  (source / SHARD).unlink()
  fails(source, f"{SHARD}: this shard is named in .* but missing")


def test_missing_tensor(source):
  edit(source, lambda t: t.pop(NORM, None))
  fails(source, f"1 of 21 tensors are missing, first '{NORM}'")


def test_unknown_tensor_names_the_nearest(source):
  edit(source, lambda t: t.update({"encoder.nrom.weight": t.pop(NORM)})
       if NORM in t else None)  # fmt: skip
  fails(
    source, r"unknown tensor 'encoder.nrom.weight' \(nearest .*encoder.norm"
  )


def test_tensor_of_wrong_shape(source):
  edit(source, put(NORM, np.ones(49, np.float32)))
  fails(source, rf"{NORM}' should have shape \(48,\) by config.json, got \(49,")


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_nan_or_inf_is_named_with_its_place(source, value):
  damaged = np.ones((96, 48), np.float32)
  damaged[3, 5] = value
  edit(source, put(KERNEL, damaged))
  fails(source, rf"tensor '{KERNEL}' holds NaN or Inf at \[3, 5\]")


def test_tensor_that_is_not_float(source):
  edit(source, put(NORM, np.ones(48, np.int8)))
  fails(source, f"{NORM}' should be one of .* got I8; quantised")


def test_config_of_another_architecture(source):
  config = json.loads((source / "config.json").read_text())
  config["model_type"] = "bert"
  (source / "config.json").write_text(json.dumps(config))
  fails(source, "model_type should be one of .* got 'bert'")


def test_lora_for_another_size(source, tiny):
  wrong = [(a[:, :-1], b) for a, b in tiny.lora]
  helpers.write_lora(source / "linear_spec_lora", wrong, 8.0)
  for merge_lora in ("own", None):  # Nor is it carried along.
    fails(source, "layer 0 should have .*another mo", merge_lora=merge_lora)


def test_lora_that_is_not_there(source):
  fails(source, "none/adapter_config.json: expected a PEFT", merge_lora="none")


def test_existing_target_is_replaced_only_when_asked(source, tmp_path):
  target = tmp_path / "target"
  convert.convert(str(source), str(target), convert.to_orbax)
  before = sorted(target.rglob("*"))
  with pytest.raises(UserError, match="target: exists already; --overwrite"):
    convert.convert(str(source), str(target), convert.to_hf)
  assert sorted(target.rglob("*")) == before
  assert {p.name for p in tmp_path.iterdir()} == {"hf", "target"}
  convert.convert(str(source), str(target), convert.to_hf, overwrite=True)
  open_checkpoint(str(target)).load_params()
  assert not (target / "params").exists()


def test_what_is_no_checkpoint_is_never_replaced(source, tmp_path):
  (tmp_path / "target").mkdir()
  (tmp_path / "target" / "thesis.txt").write_text("mine")
  with pytest.raises(
    UserError, match=r"is no checkpoint folder .*, so it is not"
  ):
    convert.convert(
      str(source), str(tmp_path / "target"), convert.to_hf, overwrite=True
    )
  assert (tmp_path / "target" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("target", ["hf", "hf/inside", "."])
def test_source_and_target_lie_apart(source, tmp_path, target):
  with pytest.raises(UserError, match="the target should lie outside"):
    convert.convert(
      str(source), str(tmp_path / target), convert.to_hf, overwrite=True
    )


def test_too_small_a_disk_is_told_before_the_work(source, monkeypatch):
  usage = lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000)
  monkeypatch.setattr(shutil, "disk_usage", usage)
  fails(source, r"2\d\d\.?\d* kB are needed, but only 1 kB are free")
  folders.check_space(source, 1000)  # As many as there are.
  with pytest.raises(UserError, match="1.001 kB are needed"):
    folders.check_space(source, 1001)


@pytest.mark.parametrize("layout", [convert.to_orbax, convert.to_hf])
def test_disk_that_fills_up_leaves_nothing(source, tmp_path, layout):
  """A limit on the size of files stands for the full disk."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, hard))
  try:
    with pytest.raises(UserError, match="could not be written .*too large"):
      convert.convert(str(source), str(tmp_path / "target"), layout)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert list(tmp_path.iterdir()) == [source]


def test_target_that_another_process_writes(source, tmp_path):
  target = tmp_path / "target"
  with folders.new_folder(target) as partial:
    (partial / "begun").write_text("")
    with pytest.raises(UserError, match="target: another process is writing"):
      convert.convert(str(source), str(target), convert.to_hf)
    assert (partial / "begun").exists()
  assert (target / "begun").exists()


def orbax_of(source):
  target = source.parent / "orbax"
  convert.convert(str(source), str(target), convert.to_orbax)
  shutil.rmtree(source)
  return target


def test_orbax_folder_with_a_truncated_or_missing_file(source):
  orbax = orbax_of(source)
  data = max((orbax / "params").rglob("*"), key=lambda p: p.stat().st_size)
  os.truncate(data, data.stat().st_size // 2)
  fails(orbax, "params: not a complete Orbax checkpoint .* again")
  data.unlink()
  fails(orbax, "params: not a complete Orbax checkpoint .* again")


def test_orbax_folder_without_its_tree_is_no_checkpoint(source):
  orbax = orbax_of(source)
  (orbax / "params" / "_METADATA").unlink()
  fails(orbax, "expected model.safetensors or")


def test_orbax_tensor_that_is_not_float(source, tiny):
  orbax = orbax_of(source)
  shutil.rmtree(orbax / "params")
  norm = {"weight": np.ones(48, np.int8)}
  write_params(orbax / "params", {**tiny.params, "norm": norm})
  fails(orbax, "'encoder.norm.weight' should be of floats, got int8; quantised")


def test_unreadable_checksums(source):
  orbax = orbax_of(source)
  (orbax / "conversion.json").write_text("[]")
  fails(orbax, "conversion.json: expected JSON with tensors")


def test_packages_that_are_not_installed(source, monkeypatch):
  monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
  monkeypatch.setitem(sys.modules, "gguf", None)
  pair = str(source), str(source.parent / "target")
  with pytest.raises(UserError, match=r"Orbax .* install nemodiff-jax\[conv"):
    convert.convert(*pair, convert.to_orbax)
  with pytest.raises(UserError, match=r"GGUF .* install nemodiff-jax\[conv"):
    trimode.ar_to_trimode("model.gguf", pair[1], "9", 8)
  assert list(source.parent.iterdir()) == [source]


def test_orbax_tensor_of_another_config(source):
  orbax = orbax_of(source)
  config = json.loads((orbax / "config.json").read_text())
  config["intermediate_size"] = 95
  (orbax / "config.json").write_text(json.dumps(config))
  fails(orbax, r"down_proj.weight' should have shape \(48, 95\) .*got \(48, 96")


def test_verify_tells_what_differs(source, tmp_path, tiny):
  other, orbax = tmp_path / "other", tmp_path / "orbax"
  convert.convert(str(source), str(orbax), convert.to_orbax)
  convert.convert(str(source), str(other), convert.to_hf)
  edit(other, lambda t: KERNEL in t and t[KERNEL].__setitem__((2, 4), 7))
  edit(other, put(NORM, np.ones(48, np.float16)))
  a, b = open_checkpoint(str(orbax)), open_checkpoint(str(other))
  found = list(compare.compare(a, b, None))
  assert len(found) == 4
  changed = f"{other} was changed since it was written"
  assert found[0].startswith(f"{KERNEL}: 1 of 4608 values, first at [2, 4]: ")
  assert found[1] == f"{KERNEL}: {changed}"
  assert found[2] == f"{NORM}: [48] float32 and [48] float16"
  assert found[3] == f"{NORM}: {changed}"


@pytest.mark.parametrize("block", [1, 10, 2**20])
def test_differences_and_nan_are_found_in_blocks(monkeypatch, block):
  monkeypatch.setattr(lazy, "_BLOCK", block)
  x = np.arange(24, dtype=np.float32).reshape(6, 2, 2)
  x[0, 0, 1] = np.nan
  y = x.copy()
  y[[3, 5], 1, 0] = 7, np.nan
  found = compare._first_difference(x, y)
  assert found == "2 of 24 values, first at [3, 1, 0]: 14 and 7"
  assert compare._first_difference(x, x) == "bytes differ, values do not"
  with pytest.raises(UserError, match=r"x holds NaN or Inf at \[4, 1, 0\]"):
    values.check_finite(y[1:], "x")


def test_verify_tells_of_other_configs(source, tmp_path):
  other = tmp_path / "other"
  shutil.copytree(source, other)
  config = json.loads((other / "config.json").read_text())
  config["rms_norm_eps"] = 0.125
  (other / "config.json").write_text(json.dumps(config))
  pair = open_checkpoint(str(source)), open_checkpoint(str(other))
  (line,) = compare.compare(*pair, None)
  assert line == "config: rms_norm_eps 1e-05 and 0.125"


def test_verify_compares_logits(source, capsys):
  opened = open_checkpoint(str(source))
  assert not list(compare.compare(opened, opened, "any"))
  assert "logits of 8 tokens: largest difference 0" in capsys.readouterr().out


def test_verify_needs_a_prompt(source):
  model = tokenizers.models.WordLevel({"w9": 9}, unk_token="w9")
  tokenizers.Tokenizer(model).save(str(source / "tokenizer.json"))
  opened = open_checkpoint(str(source))
  with pytest.raises(
    UserError, match="should be of one token at least, got ''"
  ):
    list(compare.compare(opened, opened, ""))
