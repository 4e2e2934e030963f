"""config.json in, ModelConfig out, and what cannot be used."""

import json

import pytest

from nemodiff_jax.errors import UserError
from nemodiff_jax.io.hf_config import from_hf, to_hf
from nemodiff_jax.nn.config import preset

BASE = to_hf(preset("tiny"))


def test_round_trip():
  for name in ("tiny", "3b", "8b", "14b"):
    config = preset(name)
    assert from_hf(json.loads(json.dumps(to_hf(config)))) == config


def test_presets_are_the_released_ones():
  sizes = {
    name: (c.hidden_size, c.intermediate_size, c.num_layers, c.rope.theta)
    for name, c in ((n, preset(n)) for n in ("3b", "8b", "14b"))
  }
  assert sizes == {
    "3b": (3072, 9216, 26, 1e6),
    "8b": (4096, 14336, 34, 1e6),
    "14b": (5120, 16384, 40, 1e9),
  }
  config = preset("8b")
  assert (config.num_heads, config.num_kv_heads, config.head_dim) == (
    32,
    8,
    128,
  )
  assert (config.mask_id, config.bos_id, config.eos_ids) == (100, 1, (11,))
  assert config.rope.attention_factor == 1.0 and not config.tie_embeddings
  with pytest.raises(UserError, match="preset should be one of"):
    preset("70b")


def test_multimodal_config_gives_its_text_part():
  text = {k: v for k, v in BASE.items() if k != "tie_word_embeddings"}
  text["model_type"] = "ministral3"
  config = from_hf(
    {"model_type": "mistral3", "text_config": text, "vision_config": {}}
  )
  assert config == preset("tiny")


def test_old_rope_layout_and_eos_forms():
  old = {k: v for k, v in BASE.items() if k != "rope_parameters"}
  old |= {"rope_theta": 5e5, "rope_scaling": None, "eos_token_id": 7}
  config = from_hf(old)
  assert config.rope.theta == 5e5 and config.rope.factor is None
  assert config.eos_ids == (7,)
  assert from_hf(old | {"eos_token_id": [7, 8]}).eos_ids == (7, 8)
  assert from_hf(old | {"mask_token_id": -1}).mask_id is None
  assert from_hf(old | {"mask_token_id": None}).mask_id is None


def test_yarn_attention_factor():
  rope = BASE["rope_parameters"] | {"attention_factor": None}
  factor = lambda **kw: (
    from_hf(BASE | {"rope_parameters": rope | kw}).rope.attention_factor
  )
  assert factor(mscale=1.0, mscale_all_dim=1.0) == 1.0
  assert factor() == pytest.approx(1.2772588)
  assert factor(mscale=2.0, mscale_all_dim=1.0) == pytest.approx(1.2170734)
  assert factor(attention_factor=1.5) == 1.5
  assert factor(factor=0.25) == 1.0


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model_type": "llama"}, "model_type should be one of .* got 'llama'"),
    ({"hidden_size": None}, "hidden_size is missing"),
    ({"num_hidden_layers": 0}, "num_layers should be a positive .* got 0"),
    ({"num_hidden_layers": 10**9}, "num_layers should be at most 1000"),
    ({"hidden_size": 48.0}, "hidden_size should be a positive .* got 48.0"),
    ({"vocab_size": "97"}, "vocab_size should be a positive .* got '97'"),
    ({"bos_token_id": "a"}, "bos_token_id should lie in the vocabulary"),
    ({"num_key_value_heads": 3}, r"\(4\) should be a multiple of .* \(3\)"),
    ({"head_dim": 15}, "head_dim should be even, got 15"),
    ({"mask_token_id": 97}, "mask_token_id should lie in the vocabulary of 97"),
    ({"eos_token_id": [2, 400]}, "eos_token_id should lie in the vocabulary"),
    ({"eos_token_id": 5}, "mask_token_id 5 is an eos_token_id too"),
    ({"hidden_act": "gelu"}, "hidden_act should be 'silu', got 'gelu'"),
    ({"sliding_window": 4096}, "sliding_window should be None, got 4096"),
    ({"block_size": 0}, "block_size should be a positive"),
    ({"rms_norm_eps": -1}, "rms_norm_eps should be positive, got -1"),
    ({"rope_parameters": "x"}, "rope_parameters should be an object, got 'x'"),
    ({"rope_parameters": {"factor": 2}}, "has a factor, but no rope_type"),
    (
      {"rope_parameters": {"rope_type": "default", "rope_theta": 1}},
      "rope_theta should be above 1, got 1.0",
    ),
    (
      {"rope_parameters": BASE["rope_parameters"] | {"factor": 0}},
      "rope factor should be positive, got 0",
    ),
    ({"rope_parameters": {"rope_type": "llama3"}}, "rope_type should be"),
    ({"rope_parameters": {"rope_type": "default"}}, "rope_theta is missing"),
    (
      {
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2}
      },
      "original_max_position_embeddings should be positive",
    ),
    (
      {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
      "factor is missing",
    ),
  ],
)
def test_bad_configs_are_named(changes, message):
  with pytest.raises(UserError, match=message):
    from_hf(BASE | changes)
