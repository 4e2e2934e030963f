"""GGUF metadata that changes the arithmetic: computed, harmless or refused."""

import gguf
import pytest
from gguf.constants import Keys

from checkpoints_convert import trimode
from checkpoints_convert.gguf_source import Gguf
from nemodiff_jax.errors import UserError


def keys(of=Keys):
  """Every name of a key that the package `gguf` knows."""
  for name, value in vars(of).items():
    if isinstance(value, type):
      yield from keys(value)
    elif isinstance(value, str) and not name.startswith("_"):
      yield value


OF_MODEL = sorted(k[7:] for k in keys() if k.startswith("{arch}."))
READ = {
  "context_length", "embedding_length", "block_count", "feed_forward_length",
  "attention.head_count", "attention.head_count_kv", "attention.key_length",
  "attention.layer_norm_rms_epsilon", "rope.freq_base",
}  # fmt: skip
HARMLESS = {
  # Of the file, of training, or of a vocabulary that the tokens tell.
  "vocab_size", "tensor_data_layout", "rope.scaling.finetuned",
  "pooling_type", "decoder_start_token_id", "attention.layer_norm_epsilon",
  # Only beside a scaling, or a window, that is refused itself.
  "rope.scaling.original_context_length", "rope.scaling.yarn_beta_fast",
  "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_ext_factor",
  "rope.scaling.yarn_log_multiplier", "rope.freq_base_swa",
  "rope.dimension_count_swa", "attention.key_length_swa",
  "attention.value_length_swa", "attention.sliding_window_pattern",
}  # fmt: skip


@pytest.fixture
def read(tmp_path):
  """Config of a file of these keys and no tensors; None leaves one out."""

  def call(name="model.gguf", general=(), **changes):
    path = tmp_path / name
    writer = gguf.GGUFWriter(path, "llama")
    given = {
      "context_length": 512,
      "embedding_length": 64,
      "block_count": 2,
      "feed_forward_length": 96,
      "attention.head_count": 4,
      "attention.head_count_kv": 2,
      "attention.layer_norm_rms_epsilon": 1e-5,
    } | {k.replace("__", "."): v for k, v in changes.items()}
    given = {f"llama.{k}": v for k, v in given.items()} | dict(general)
    for key, value in given.items():
      if isinstance(value, bool):
        writer.add_bool(key, value)
      elif isinstance(value, int):
        writer.add_uint32(key, value)
      elif isinstance(value, float):
        writer.add_float32(key, value)
      elif isinstance(value, str):
        writer.add_string(key, value)
      elif value is not None:
        writer.add_array(key, value)
    writer.add_token_list(["a", "b", "c", "d", "e"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Gguf(path).config

  return call


@pytest.mark.parametrize("key", sorted({*OF_MODEL} - READ - HARMLESS))
def test_what_changes_the_arithmetic_is_refused_by_name(read, key):
  text = key.endswith("scaling.type")
  with pytest.raises(UserError, match=f"model.gguf: llama.{key} should be"):
    read(**{key: "longrope" if text else 7.5})


@pytest.mark.parametrize("key", sorted(HARMLESS))
def test_what_is_harmless_is_passed_over(read, key):
  assert read(**{key: 7.5}) == read()


@pytest.mark.parametrize(
  "neutral",
  [
    {"rope.dimension_count": 16},
    {"attention.value_length": 16, "attention.key_length": 16},
    {"attention.causal": True},
    {"attention.sliding_window": 0},
    {"attention.sliding_window": 512},
    {"attention.scale": 0.25},
    {"attention.scale": 0.0},
    {"logit_scale": 1.0, "embedding_scale": 0.0, "residual_scale": 1.0},
    {"expert_count": 0, "expert_used_count": 0, "use_parallel_residual": False},
    {"rope.scaling.type": "none", "rope.scaling.factor": 4.0},
    {"rope.scaling.type": "linear"},
    {"rope.scaling.type": "linear", "rope.scaling.factor": 1.0},
    {"rope.scaling.type": "linear", "rope.scaling.factor": 0.0},
    {"rope.scaling.type": "yarn", "rope.scaling.factor": 1.0},
    {"rope.scaling.factor": 1.0, "rope.scale_linear": 4.0},
    {"rope.scale_linear": 1.0},
    {"rope.scaling.attn_factor": 1.0},
    {"attention.head_count": [4, 4], "attention.head_count_kv": [2, 2]},
    {"feed_forward_length": [96, 96]},
    {"rope.dimension_sections": [0, 0, 0, 0]},
  ],
  ids=str,
)
def test_neutral_values_pass(read, neutral):
  assert read(**neutral) == read()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"rope.dimension_count": 8}, "rope.dimension_count should be 16 or .* 8"),
    ({"attention.value_length": 8}, "value_length should be 16 .*, got 8"),
    ({"rope.scale_linear": 4.0}, r"scale_linear should be 1 .*, got 4\.0"),
    ({"rope.scaling.factor": 4.0}, r"scaling.factor should be 1 .*, got 4\.0"),
    (
      {"rope.scaling.type": "linear", "rope.scale_linear": 2.0},
      r"rope.scale_linear should be 1 .*, got 2\.0",
    ),
    (
      {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
      "rope.scaling.type should be 'none', got 'yarn'",
    ),
    ({"attention.causal": False}, "causal should be True .*, got False"),
    ({"attention.sliding_window": 511}, "sliding_window should be 0 .* 511"),
    ({"attention.scale": 0.5}, r"attention.scale should be 0\.25 .*, got 0\.5"),
    ({"logit_scale": 16.0}, r"logit_scale should be 1 .*, got 16\.0"),
    ({"expert_count": 8}, "expert_count should be 0 or left out, got 8"),
    (
      {"attention.head_count_kv": [2, 1]},
      r"head_count_kv should be the same in all layers, got \[2, 1\]",
    ),
    (
      {"feed_forward_length": [96, 64]},
      r"feed_forward_length should be the same in all layers, got \[96, 64\]",
    ),
    ({"of.tomorrow": 3}, "of.tomorrow should be 0 or left out, got 3"),
  ],
)
def test_refusals_say_what_was_found(read, changes, message):
  with pytest.raises(UserError, match=f"model.gguf: llama.*{message}"):
    read(**changes)


def test_missing_heads_of_keys_are_the_heads(read):
  assert read(**{"attention.head_count_kv": None}).num_kv_heads == 4


@pytest.mark.parametrize(
  ("name", "general"),
  [
    ("model-00001-of-00003.gguf", {}),
    ("renamed.gguf", {"split.count": 3, "split.no": 0}),
    ("model-00002-of-00003.gguf", {"split.count": 3, "split.no": 1}),
  ],
)
def test_split_files_are_refused_by_name(read, name, general):
  message = f"{name}: this is one of 3 parts of a split GGUF file.*merge"
  with pytest.raises(UserError, match=message):
    read(name, general.items())


def test_one_part_of_one_is_whole(read):
  assert read("model-00001-of-00001.gguf") == read()
  assert read("m.gguf", {"split.count": 1}.items()) == read()


def test_files_of_no_model(read):
  with pytest.raises(UserError, match="type should be 'model', got 'adapter'"):
    read(general={"general.type": "adapter"}.items())
  assert read(general={"general.type": "model"}.items()) == read()


def test_all_ids_that_end_a_text(read):
  ids = {"eos": 2, "eot": 3, "eom": 4}
  given = {f"tokenizer.ggml.{k}_token_id": v for k, v in ids.items()}
  assert read(general=given.items()).eos_ids == (2, 3, 4)


def test_a_name_in_capitals_is_a_gguf_file_too(tmp_path):
  path = tmp_path / "MODEL.GGUF"
  path.write_bytes(b"GGUF")
  with pytest.raises(UserError, match="not a complete GGUF file"):
    trimode.ar_to_trimode(str(path), str(tmp_path / "t"), "3", 8)
