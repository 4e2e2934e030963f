"""Files of weights as others write them: leftovers, precedence, refusals."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints_convert import compare, convert
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import open_checkpoint
from tests import helpers
from tests.io.test_checkpoint import edit, fails, same

FILE = "model.safetensors"
LAYER = "encoder.layers.0."


@pytest.fixture
def single(tmp_path, tiny):
  helpers.write_checkpoint(tmp_path / "hf", tiny)
  return tmp_path / "hf"


@pytest.mark.parametrize(
  "name",
  [
    LAYER + "self_attn.rotary_emb.inv_freq",
    LAYER + "self_attn.rotary_emb.cos_cached",
    LAYER + "self_attn.rotary_emb.sin_cached",
    LAYER + "self_attn.rotary_emb.original_inv_freq",
    "encoder.rotary_emb.inv_freq",
    "model.rotary_emb.inv_freq",
    "rotary_emb.inv_freq",
    "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
    "encoder.rotary_pos_emb.inv_freq",
    "encoder.embeddings.position_ids",
    LAYER + "self_attn.masked_bias",
    LAYER + "attn.bias",
    LAYER + "attention.bias",
  ],
)
def test_leftover_buffers_are_left_out(single, tiny, tmp_path, name):
  """Whatever they hold: integers and NaN too."""
  for value in (np.full(8, np.nan, np.float32), np.arange(3)):
    edit(single / FILE, lambda t, value=value: t.update({name: value}))
    same(open_checkpoint(str(single)).load_params(), tiny.params)
  orbax, back = tmp_path / "orbax", tmp_path / "back"
  convert.convert(str(single), str(orbax), convert.to_orbax)
  convert.convert(str(orbax), str(back), convert.to_hf)
  pair = open_checkpoint(str(single)), open_checkpoint(str(back))
  assert not compare.compare_tensors(*pair)
  assert name not in load_file(back / FILE)


@pytest.mark.parametrize(
  "name",
  [
    LAYER + "self_attn.q_proj.bias",
    LAYER + "self_attn.q_norm.weight",
    LAYER + "self_attn.rotary_embed.weight",
    "encoder.position_embeddings.weight",
    LAYER + "my_inv_freq",
    LAYER + "mlp.bias",
    "encoder.layers.2.input_layernorm.weight",
  ],
)
def test_what_may_count_is_no_leftover(single, name):
  edit(single / FILE, lambda t: t.update({name: np.ones(8, np.float32)}))
  fails(single, f"unknown tensor '{name}'")


def test_one_file_counts_before_an_index(single, tiny):
  """As in transformers; the index is left over from other shards."""
  names = load_file(single / FILE)
  index = {"weight_map": dict.fromkeys(names, "model-00001-of-00002.safete")}
  (single / f"{FILE}.index.json").write_text(json.dumps(index))
  same(open_checkpoint(str(single)).load_params(), tiny.params)
  other = {name: value * 2 for name, value in names.items()}
  save_file(other, single / "model-00001-of-00001.safetensors")
  index = dict.fromkeys(names, "model-00001-of-00001.safetensors")
  text = json.dumps({"weight_map": index})
  (single / f"{FILE}.index.json").write_text(text)
  same(open_checkpoint(str(single)).load_params(), tiny.params)


def test_an_index_that_names_the_one_file_counts(tmp_path, tiny):
  helpers.write_checkpoint(tmp_path, tiny, shards=2)
  (tmp_path / "model-00001-of-00002.safetensors").rename(tmp_path / FILE)
  path = tmp_path / f"{FILE}.index.json"
  path.write_text(path.read_text().replace("model-00001-of-00002.sa", FILE[:8]))
  same(open_checkpoint(str(tmp_path)).load_params(), tiny.params)


@pytest.mark.parametrize("order", [(1, 2), (2, 1), (3, 2)])
def test_an_export_over_an_older_one_is_read(tmp_path, tiny, order):
  """Whatever form the older had, it does not count any more."""
  older, newer = helpers.make_tiny(1), tiny
  for model, shards in zip((older, newer), order, strict=True):
    helpers.write_checkpoint(tmp_path, model, shards=shards)
  same(open_checkpoint(str(tmp_path)).load_params(), newer.params)
  assert (tmp_path / FILE).exists() == (order[1] == 1)


@pytest.mark.parametrize(
  ("suffix", "method"),
  [
    ("weight_scale_inv", "fp8"),
    ("activation_scale", "fp8"),
    ("weight_scale", "fp8 or int8"),
    ("input_scale", "fp8 or int8"),
    ("weight_scale_2", "nvfp4"),
    ("weight_packed", "compressed-tensors"),
    ("qweight", "awq or gptq"),
    ("qzeros", "awq or gptq"),
    ("g_idx", "gptq"),
    ("SCB", "bitsandbytes"),
    ("weight.absmax", "bitsandbytes"),
    ("weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
  ],
)
def test_quantised_tensors_are_refused_by_name(single, suffix, method):
  name = f"{LAYER}mlp.up_proj.{suffix}"
  edit(single / FILE, lambda t: t.update({name: np.ones(2, np.float32)}))
  fails(single, f"{FILE}: tensor '{name}' .* quantised as {method}.*bf16")


@pytest.mark.parametrize(
  ("dtype", "method"),
  [(ml_dtypes.float8_e4m3fn, "fp8"), (ml_dtypes.float8_e5m2, "fp8"),
   (np.uint8, "4 bits")],
)  # fmt: skip
def test_quantised_kernels_alone_are_refused_by_name(single, dtype, method):
  name = LAYER + "mlp.up_proj.weight"
  edit(single / FILE, lambda t: t.update({name: t[name].astype(dtype)}))
  fails(single, f"'{name}' is quantised as {method}, which is not read; use")


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("consolidated.safetensors", "; consolidated.safetensors is .* Mistral's"),
    ("consolidated.00.pth", "; consolidated.00.pth is there, Mistral's own"),
    ("pytorch_model.bin", "; pytorch_model.bin is there, pickled, which is"),
    (
      "model.Q8_0.gguf",
      "; model.Q8_0.gguf is there, which .*ar_to_trimode can",
    ),
    (
      "adapter_model.safetensors",
      "; .* is there, a LoRA .*; give it as --lora",
    ),
    ("model-00001-of-00002.safetensors", "; .* there, but .* without an index"),
    ("notes.txt", r"\.$"),
  ],
)
def test_weights_in_another_form_are_named(single, name, message):
  (single / FILE).rename(single / name)
  fails(single, f"expected {FILE} or .*, found neither{message}")


def test_a_missing_head_says_how_to_tie_it(single):
  edit(single / FILE, lambda t: t.pop("diffusion_head.weight"))
  fails(single, "missing, first 'diffusion_head.weight'; if the head is the")


def test_config_with_a_byte_order_mark_or_too_deep(single, tiny):
  path = single / "config.json"
  path.write_text("\ufeff" + path.read_text(), encoding="utf-8")
  assert open_checkpoint(str(single)).config == tiny.config
  path.write_text("[" * 100_000)
  with pytest.raises(UserError, match="config.json: expected JSON"):
    open_checkpoint(str(single))
