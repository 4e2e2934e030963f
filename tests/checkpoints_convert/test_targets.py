"""What a conversion may replace, and that it writes nowhere else."""

import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints_convert import compare, convert, trimode
from checkpoints_convert.folders import new_folder
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import open_checkpoint
from tests.checkpoints_convert.test_round_trip import write_source


@pytest.fixture
def source(tmp_path, tiny):
  """A multimodal checkpoint, so that some tensors are no part of the model."""
  write_source(tmp_path / "hf", tiny, "multimodal")
  return tmp_path / "hf"


def to_orbax(source, target, **how):
  convert.convert(str(source), str(target), convert.to_orbax, **how)


def content(folder):
  """Path -> bytes of every file of a folder."""
  return {
    path.relative_to(folder): path.read_bytes()
    for path in folder.rglob("*")
    if path.is_file()
  }


@pytest.mark.parametrize("beside", ["config.json", "model.safetensors"])
def test_half_a_checkpoint_is_not_replaced(source, tmp_path, beside):
  mine = tmp_path / "mine"
  mine.mkdir()
  (mine / beside).write_text("{}")
  (mine / "thesis.txt").write_text("mine")
  with pytest.raises(
    UserError, match=r"no checkpoint folder \(config.json and"
  ):
    to_orbax(source, mine, overwrite=True)
  assert sorted(content(mine).values()) == [b"mine", b"{}"]


def test_dry_run_tells_what_the_run_would_refuse(source, tmp_path):
  before = content(tmp_path)
  (tmp_path / "target").mkdir()
  with pytest.raises(UserError, match="target: exists already"):
    to_orbax(source, tmp_path / "target", dry_run=True)
  with pytest.raises(UserError, match="--mask=nosuch should be a token"):
    trimode.ar_to_trimode(
      str(source), str(tmp_path / "new"), "nosuch", 8, dry_run=True
    )
  assert content(tmp_path) == before and not (tmp_path / "new").exists()


def test_a_linked_target_is_replaced_and_not_what_it_links_to(source, tmp_path):
  real, link = tmp_path / "real", tmp_path / "link"
  shutil.copytree(source, real)
  link.symlink_to(real)
  to_orbax(source, link, overwrite=True)
  assert not link.is_symlink() and content(real) == content(source)
  assert {p.name for p in tmp_path.iterdir()} == {"hf", "real", "link"}


def test_a_link_to_nothing_is_no_checkpoint(source, tmp_path):
  (tmp_path / "link").symlink_to(tmp_path / "nowhere")
  with pytest.raises(UserError, match="link: exists and is no checkpoint"):
    to_orbax(source, tmp_path / "link", overwrite=True)


def test_tilde_is_the_home_folder(source, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  before = content(source)
  for run in (
    lambda: trimode.ar_to_trimode("~/hf", "~/hf", "9", 8, overwrite=True),
    lambda: to_orbax("~/hf", "~/hf", overwrite=True),
  ):
    with pytest.raises(UserError, match="the target should lie outside"):
      run()
  assert content(source) == before
  to_orbax("~/hf", "~/a/orbax", merge_lora="~/hf/linear_spec_lora")
  open_checkpoint(str(tmp_path / "a" / "orbax")).load_params()


def test_a_failure_leaves_no_new_parents(source, tmp_path):
  (tmp_path / "old").mkdir()
  with pytest.raises(KeyError), new_folder(tmp_path / "old" / "a" / "b" / "c"):
    raise KeyError
  assert not list((tmp_path / "old").iterdir())


def test_a_half_removed_folder_is_never_brought_back(
  source, tmp_path, monkeypatch
):
  """Killed while the older folder is being removed, then the target moved."""
  target = tmp_path / "target"
  to_orbax(source, target)
  removing = shutil.rmtree

  def killed(path, **how):
    if os.path.exists(os.path.join(path, "config.json")):
      os.unlink(os.path.join(path, "config.json"))
      raise KeyboardInterrupt
    removing(path, **how)

  monkeypatch.setattr(shutil, "rmtree", killed)
  with pytest.raises(KeyboardInterrupt):
    to_orbax(source, target, overwrite=True)
  monkeypatch.undo()
  open_checkpoint(str(target)).load_params()
  target.rename(tmp_path / "moved")
  with pytest.raises(KeyError), new_folder(target):
    raise KeyError
  assert {p.name for p in tmp_path.iterdir()} == {"hf", "moved"}


@pytest.mark.parametrize(
  ("entry", "message"),
  [
    ({"file": "../x.safetensors"}, "'../x.safetensors' should be the name of"),
    ({"file": "config.json"}, "'config.json' should be the name of"),
    ({"file": 3}, "TypeError"),
    ("x", "TypeError"),
    ({}, "KeyError: 'file'"),
  ],
)
def test_a_manifest_names_files_of_the_folder_only(
  source, tmp_path, entry, message
):
  orbax, target = tmp_path / "in" / "orbax", tmp_path / "out" / "target"
  to_orbax(source, orbax)
  manifest = json.loads((orbax / "conversion.json").read_text())
  name = next(iter(manifest["tensors"]))
  if isinstance(entry, dict):
    entry = {"sha256": "0", **entry}
  manifest["tensors"][name] = entry
  (orbax / "conversion.json").write_text(json.dumps(manifest))
  message = f"conversion.json: expected JSON with tensors.*{message}"
  with pytest.raises(UserError, match=message):
    convert.convert(str(orbax), str(target), convert.to_hf)
  with pytest.raises(UserError, match=message):
    opened = open_checkpoint(str(orbax))
    list(compare.compare(opened, opened, None))
  assert not (tmp_path / "out").exists()


def test_lost_tensors_are_noticed(source, tmp_path):
  orbax = tmp_path / "orbax"
  to_orbax(source, orbax)
  shutil.rmtree(orbax / "other")
  message = "2 tensors of conversion.json are missing, first 'vision_tower.pat"
  with pytest.raises(UserError, match=message):
    convert.convert(str(orbax), str(tmp_path / "back"), convert.to_hf)
  pair = open_checkpoint(str(source)), open_checkpoint(str(orbax))
  with pytest.raises(UserError, match=message):
    list(compare.compare(*pair, None))
  pair[1].load_params()  # The model itself is whole.


@pytest.mark.parametrize("merge", [None, "own"])
def test_numbers_too_large_for_the_dtype_are_named(source, tmp_path, merge):
  """Of a tensor as it is, and of one that a LoRA makes so large."""
  lora = source / "linear_spec_lora" / "adapter_config.json"
  if merge:
    config = json.loads(lora.read_text())
    lora.write_text(json.dumps({**config, "lora_alpha": 1.2e39}))
    message = "o_proj.weight' holds NaN or Inf at .*what the LoRA adds"
  else:
    path = source / "model.safetensors"
    tensors = load_file(path)
    norm = np.array([1.0] * 47 + [1e300])
    tensors["language_model.model.norm.weight"] = norm
    save_file(tensors, path)
    message = r"norm.weight' holds NaN or Inf at \[47\]; .*large for float32"
  with pytest.raises(UserError, match=message):
    to_orbax(source, tmp_path / "orbax", dtype="float32", merge_lora=merge)
