"""Hugging Face -> Orbax -> Hugging Face, in every layout, byte by byte."""

import json

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints_convert import compare, convert
from checkpoints_convert.hf_folder import write_lora
from nemodiff_jax import api
from nemodiff_jax.io.checkpoint import open_checkpoint
from nemodiff_jax.io.lora import read_peft
from tests import helpers

STEMS = {
  "released": ("encoder.", "diffusion_head.weight"),
  "ministral3": ("model.", "lm_head.weight"),
  "multimodal": ("language_model.model.", "language_model.lm_head.weight"),
  "newer multimodal": ("model.language_model.", "lm_head.weight"),
}


def tensors_of(folder):
  """Name -> (file, dtype, shape, bytes), by safetensors' own reader."""
  return {
    name: (path.name, value.dtype, value.shape, value.tobytes())
    for path in sorted(folder.glob("*.safetensors"))
    for name, value in load_file(path).items()
  }


def write_source(folder, tiny, layout="released", shards=1, **how):
  """A checkpoint with everything beside it, its tensors renamed by layout."""
  helpers.write_checkpoint(folder, tiny, lora=True, shards=shards, **how)
  helpers.write_tokenizer(folder, tiny.config)
  (folder / "generation_config.json").write_text('{ "top_p": 0.9 }')
  (folder / "chat_template.jinja").write_text("{{ messages }}\r\n")
  (folder / "additional_chat_templates").mkdir()
  named = folder / "additional_chat_templates" / "tool_use.jinja"
  named.write_text("{{ tools }}")
  for name in ("LICENSE", "figure.png", "recipe.yaml", "tokenizer.model.v3"):
    (folder / name).write_bytes(b"\x89" + name.encode())
  stem, head = STEMS[layout]
  rename = lambda n: head if n[0] == "d" else n.replace("encoder.", stem)
  for path in folder.glob("*.safetensors"):
    tensors = {rename(n): v for n, v in load_file(path).items()}
    if layout.endswith("multimodal") and "-00002-" not in path.name:
      tensors["vision_tower.patch.weight"] = np.ones((2, 3), np.float16)
      tensors["vision_tower.scale"] = np.array(2, np.float32)
    save_file(tensors, path)
  index = folder / "model.safetensors.index.json"
  if index.exists():
    weight_map = {n: t[0] for n, t in tensors_of(folder).items()}
    index.write_text(json.dumps({"weight_map": weight_map}))
  if layout != "released":
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "ministral3"
    if layout.endswith("multimodal"):
      config = {"model_type": "mistral3", "text_config": config}
    (folder / "config.json").write_text(json.dumps(config))


def assert_same_beside(a, b):
  """Every file but weights and checksums is the same, byte by byte."""
  weights = ("model-", "model.", "conversion.json")
  for path in a.rglob("*"):
    if path.is_file() and not path.name.startswith(weights):
      assert (b / path.relative_to(a)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
  "layout, shards, dtype",
  [
    ("released", 1, ml_dtypes.bfloat16),
    ("released", 3, np.float32),
    ("ministral3", 2, np.float16),
    ("multimodal", 2, ml_dtypes.bfloat16),
    ("newer multimodal", 1, np.float32),
  ],
)
def test_round_trip_is_byte_equal(tmp_path, tiny, layout, shards, dtype):
  hf, orbax, back = (tmp_path / n for n in ("hf", "orbax", "back"))
  write_source(hf, tiny, layout, shards, dtype=dtype)
  convert.convert(str(hf), str(orbax), convert.to_orbax)
  assert not list(orbax.glob("*.safetensors*"))
  convert.convert(str(orbax), str(back), convert.to_hf)
  assert tensors_of(back) == tensors_of(hf)
  for other in (orbax, back):
    assert_same_beside(hf, other)
    pair = open_checkpoint(str(hf)), open_checkpoint(str(other))
    assert not list(compare.compare(*pair, None))
  want = open_checkpoint(str(hf)).load_params()
  with ocp.StandardCheckpointer() as checkpointer:  # Orbax's own reader.
    restored = checkpointer.restore(orbax / "params")
  jax.tree.map(np.testing.assert_array_equal, restored, want)


def test_an_orbax_folder_decodes_as_its_source(folder, tmp_path):
  convert.convert(str(folder), str(tmp_path / "orbax"), convert.to_orbax)
  models = [api.load(str(f)) for f in (folder, tmp_path / "orbax")]
  a, b = (api.generate(m, "w7 w9 w8", max_new_tokens=3) for m in models)
  assert a == b and a[0].text


def test_a_head_that_tied_embeddings_do_not_use_is_kept(tmp_path):
  hf, orbax, back = (tmp_path / n for n in ("hf", "orbax", "back"))
  helpers.write_checkpoint(hf, helpers.make_tiny(tie_embeddings=True))
  tensors = load_file(hf / "model.safetensors")
  tensors["diffusion_head.weight"] = tensors["encoder.embed_tokens.weight"] * 2
  save_file(tensors, hf / "model.safetensors")
  convert.convert(str(hf), str(orbax), convert.to_orbax)
  open_checkpoint(str(orbax)).load_params()
  convert.convert(str(orbax), str(back), convert.to_hf)
  assert tensors_of(back) == tensors_of(hf)


def test_dtype_casts_every_tensor(folder, tmp_path, tiny):
  target = tmp_path / "orbax"
  convert.convert(
    str(folder), str(target), convert.to_orbax, dtype=ml_dtypes.bfloat16
  )
  with ocp.StandardCheckpointer() as checkpointer:
    restored = checkpointer.restore(target / "params")
  cast = lambda x: np.asarray(x).astype(ml_dtypes.bfloat16)
  jax.tree.map(
    lambda x, want: np.testing.assert_array_equal(x, cast(want), strict=True),
    restored,
    dict(tiny.params),
  )


@pytest.mark.parametrize("size", [30_000, 10**9])
def test_shard_size_bounds_every_file(folder, tmp_path, size):
  target = tmp_path / "hf"
  convert.convert(str(folder), str(target), convert.to_hf, shard_size=size)
  files = {}
  for name, (file, _, _, data) in tensors_of(target).items():
    files.setdefault(file, {})[name] = len(data)
  for held in files.values():
    assert sum(held.values()) <= size or len(held) == 1
  assert (list(files) == ["model.safetensors"]) == (size == 10**9)
  index = target / "model.safetensors.index.json"
  assert index.exists() == (size < 10**9)
  pair = open_checkpoint(str(folder)), open_checkpoint(str(target))
  assert not list(compare.compare(*pair, None))


def test_dry_run_prints_the_plan_and_writes_nothing(folder, tmp_path, capsys):
  target = tmp_path / "orbax"
  convert.convert(str(folder), str(target), convert.to_orbax, dry_run=True)
  out = capsys.readouterr().out
  count = sum(len(t[3]) for t in tensors_of(folder).values())
  assert f"params/: 21 tensors, {count / 1000:.4g} kB, float32" in out
  assert not list(tmp_path.iterdir())


def test_merged_lora_is_base_plus_scaled_product(folder, tmp_path, tiny):
  target = tmp_path / "merged"
  convert.convert(str(folder), str(target), convert.to_hf, merge_lora="own")
  before, after = tensors_of(folder), tensors_of(target)
  merged = load_file(target / "model.safetensors")
  for i, (a, b) in enumerate(tiny.lora):
    name = f"encoder.layers.{i}.self_attn.o_proj.weight"
    base = tiny.params[f"layers_{i}"]["self_attn"]["o_proj"]["kernel"]
    scale = helpers.LORA_ALPHA / helpers.LORA_RANK
    want = np.asarray(base, np.float64).T + scale * (
      b.astype(np.float64) @ a.astype(np.float64)
    )
    np.testing.assert_allclose(merged[name], want, rtol=1e-5, atol=1e-6)
    assert before.pop(name) != after.pop(name)
  assert after == before
  assert open_checkpoint(str(target)).load_lora() is None


def test_merged_model_is_the_base_with_lora_on(folder, tmp_path, tiny):
  """In ar mode; with a LoRA loaded, only drafting uses it."""
  target = tmp_path / "merged"
  lora = folder / "linear_spec_lora"
  convert.convert(
    str(folder), str(target), convert.to_orbax, merge_lora=str(lora)
  )
  params = open_checkpoint(str(target)).load_params()
  config, prompt = tiny.config, [9, 8, 7, 60]
  got = compare.prompt_logits(config, params, prompt)
  want = compare.prompt_logits(
    config, tiny.params, prompt, tiny.weights(lora=True).lora
  )
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_peft_in_and_out_is_byte_equal(tmp_path, tiny, dtype):
  layers = [(a.astype(dtype), b.astype(dtype)) for a, b in tiny.lora]
  write_lora(tmp_path / "a", layers, 512.0)
  peft = read_peft(tmp_path / "a", tiny.config)
  write_lora(tmp_path / "b", peft.layers, peft.alpha)
  for file in ("adapter_config.json", "adapter_model.safetensors"):
    assert (tmp_path / "a" / file).read_bytes() == (
      tmp_path / "b" / file
    ).read_bytes()
