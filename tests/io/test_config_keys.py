"""Keys of config.json that would change the arithmetic, and those that don't."""

import pytest

from nemodiff_jax.errors import UserError
from nemodiff_jax.io.hf_config import from_hf, to_hf
from nemodiff_jax.nn.config import preset

BASE = to_hf(preset("tiny"))
ROPE = BASE["rope_parameters"]
# As the configs of transformers name them: (key, a value that changes
# something, values that change nothing).
KEYS = [
  ("hidden_act", "gelu", ("silu", "swish")),
  ("hidden_activation", "gelu_pytorch_tanh", ("silu",)),
  ("attention_bias", True, (False,)),
  ("mlp_bias", True, (False,)),
  ("qkv_bias", True, (False,)),
  ("use_bias", True, (False,)),
  ("lm_head_bias", True, (False,)),
  ("use_qk_norm", True, (False,)),
  ("qk_layernorm", True, (False,)),
  ("sliding_window", 4096, ()),
  ("sliding_window", 0, ()),
  ("layer_types", ["full_attention", "sliding_attention"], ()),
  ("layer_types", "sliding_attention", (["full_attention"] * 2, [])),
  ("no_rope_layers", [1, 0], ([1, 1], [])),
  ("mlp_layer_types", ["dense", "sparse"], (["dense", "dense"],)),
  ("partial_rotary_factor", 0.5, (1, 1.0)),
  ("rotary_pct", 0.25, (1.0,)),
  ("rotary_dim", 8, (16,)),
  ("rope_interleave", True, (False,)),
  ("position_embedding_type", "alibi", ("rope",)),
  ("alibi", True, (False,)),
  ("attn_logit_softcapping", 50.0, (0.0,)),
  ("final_logit_softcapping", 30.0, (0,)),
  ("logit_scale", 0.0625, (1.0,)),
  ("logits_scaling", 16.0, (1.0, 1)),
  ("lm_head_multiplier", 0.5, (1.0,)),
  ("embedding_multiplier", 12.0, (1.0,)),
  ("scale_embedding", True, (False,)),
  ("scale_emb", 12, (1,)),
  ("residual_multiplier", 0.22, (1.0,)),
  ("scale_depth", 1.4, (0,)),
  ("attention_multiplier", 0.0078125, (0.25,)),
  ("query_pre_attn_scalar", 256, (16,)),
  ("v_head_dim", 8, (16,)),
  ("clip_qkv", 8.0, (0,)),
  ("parallel_attn", True, (False,)),
  ("is_causal", False, (True,)),
  ("use_bidirectional_attention", True, (False,)),
  ("attn_temperature_tuning", True, (False,)),
  ("attention_chunk_size", 8192, (0,)),
  ("num_experts", 8, (0,)),
  ("num_local_experts", 8, (0,)),
  ("n_routed_experts", 64, (0,)),
  ("num_kv_shared_layers", 2, (0,)),
  ("kv_lora_rank", 512, (0,)),
]


@pytest.mark.parametrize(("key", "other", "neutral"), KEYS, ids=str)
def test_keys_of_the_arithmetic(key, other, neutral):
  with pytest.raises(UserError, match=f"{key} should be .*, got ") as told:
    from_hf(BASE | {key: other})
  assert repr(other) in str(told.value)
  for value in (None, *neutral):
    assert from_hf(BASE | {key: value}) == preset("tiny")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"num_key_value_heads": 0}, "num_kv_heads should be a positive .* got 0"),
    ({"head_dim": 0}, "head_dim should be a positive whole number, got 0"),
    ({"mask_token_id": True}, "mask_token_id should lie .*, got True"),
    ({"bos_token_id": [1, 1]}, r"bos_token_id should lie .*, got \[1, 1\]"),
    ({"eos_token_id": [True]}, "eos_token_id should lie .*, got True"),
    ({"eos_token_id": [[2]]}, r"eos_token_id should lie .*, got \[2\]"),
    (
      {"rms_norm_eps": float("inf")},
      "rms_norm_eps should be positive, got inf",
    ),
  ],
)
def test_values_that_cannot_be(changes, message):
  with pytest.raises(UserError, match=message):
    from_hf(BASE | changes)


def test_keys_of_other_concerns_are_passed_over():
  harmless = {
    "torch_dtype": "bfloat16", "dtype": "bfloat16", "use_cache": False,
    "attention_dropout": 0.1, "initializer_range": 0.02, "pad_token_id": -1,
    "transformers_version": "5.0.0", "use_sliding_window": False,
    "max_window_layers": 28, "pretraining_tp": 2, "rope_scaling": None,
    "attn_implementation": "sdpa", "dlm_paradigm": "bidirectional",
    "ar_loss_weight": 1.0, "quantization_config": None, "norm_eps": 1e-6,
    "auto_map": {}, "router_aux_loss_coef": 0.001, "ep_size": 1,
  }  # fmt: skip
  assert from_hf(BASE | harmless) == preset("tiny")


def test_another_name_of_the_epsilon():
  given = {k: v for k, v in BASE.items() if k != "rms_norm_eps"}
  assert from_hf(given).rms_norm_eps == 1e-5  # As transformers' Ministral3.
  for name in ("norm_eps", "layer_norm_eps", "layer_norm_epsilon"):
    with pytest.raises(UserError, match=f"rms_norm_eps is missing, but {name}"):
      from_hf(given | {name: 1e-6})


def rope_of(**changes):
  return from_hf(BASE | {"rope_parameters": ROPE | changes}).rope


@pytest.mark.parametrize("kind", ["linear", "dynamic", "llama3"])
def test_other_scalings_pass_with_a_factor_of_one(kind):
  plain = {"rope_type": "default", "rope_theta": 1e4}
  want = from_hf(BASE | {"rope_parameters": plain})
  given = {"rope_type": kind, "rope_theta": 1e4, "factor": 1.0}
  more = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
  more = more if kind == "llama3" else {}
  assert from_hf(BASE | {"rope_parameters": given | more}) == want
  for factor in (8.0, None):
    with pytest.raises(UserError, match=f"got '{kind}' with factor {factor}"):
      rope_of(rope_type=kind, factor=factor)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"rope_type": "longrope"}, "got 'longrope' with factor 16"),
    ({"rope_type": "proportional"}, "got 'proportional' with factor 16"),
    ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor = 0\.5 is not"),
    ({"attn_factor": 1.0}, r"rope_parameters.attn_factor = 1\.0 is not known"),
    ({"mrope_section": [4, 2, 2]}, r"mrope_section = \[4, 2, 2\] is not known"),
    ({"low_freq_factor": 1.0}, "low_freq_factor = 1.0 is not known"),
    ({"beta_fast": -1}, "rope beta_fast should be positive, got -1"),
    ({"beta_slow": float("nan")}, "rope beta_slow should be positive, got nan"),
    ({"attention_factor": 0}, "rope attention_factor should be positive"),
    ({"factor": float("inf")}, "rope factor should be positive, got inf"),
    ({"rope_theta": float("inf")}, "rope_theta should be above 1, got inf"),
    ({"original_max_position_embeddings": 10**400}, "should be positive with"),
    (
      {"original_max_position_embeddings": float("nan")},
      "positive .*, got nan",
    ),
    ({"llama_4_scaling_beta": -1}, "llama_4_scaling_beta should be 0 or pos"),
    ({"truncate": "false"}, "truncate should be true or false, got 'false'"),
  ],
)
def test_rope_parameters_that_are_refused(changes, message):
  with pytest.raises(UserError, match=message):
    rope_of(**changes)


def test_rope_parameters_that_say_nothing():
  harmless = {"type": "yarn", "max_position_embeddings": 512, "finetuned": True}
  null = {"low_freq_factor": None, "partial_rotary_factor": 1.0}
  assert rope_of(**harmless, **null) == preset("tiny").rope


def test_rope_parameters_by_kind_of_layer():
  one = {"full_attention": ROPE}
  assert from_hf(BASE | {"rope_parameters": one}) == preset("tiny")
  two = one | {"sliding_attention": ROPE}
  with pytest.raises(UserError, match="one for all layers, got one for 'full_"):
    from_hf(BASE | {"rope_parameters": two})


def test_two_names_of_the_rope_parameters():
  same = {"type" if k == "rope_type" else k: v for k, v in ROPE.items()}
  assert from_hf(BASE | {"rope_scaling": same}) == preset("tiny")
  with pytest.raises(UserError, match=r"should agree, got factor 16\.0 and 8"):
    from_hf(BASE | {"rope_scaling": same | {"factor": 8}})


def test_a_ministral3_that_does_not_say_how_it_rotates():
  """transformers takes YaRN then; an older reader takes plain RoPE."""
  given = {k: v for k, v in BASE.items() if k != "rope_parameters"}
  given |= {"model_type": "ministral3", "rope_theta": 1e6}
  with pytest.raises(UserError, match="rope_parameters is missing; a Mini.*na"):
    from_hf(given)


@pytest.mark.parametrize(
  ("top", "text", "want"),
  [
    (None, True, True),
    (True, False, True),
    (False, True, False),
    (True, None, True),
    (None, None, False),
  ],
)
def test_which_tie_counts(top, text, want):
  """The outer one, as in transformers 5."""
  name, given = "tie_word_embeddings", {"model_type": "mistral3"}
  part = BASE | {"model_type": "ministral3", name: text}
  config = given | {"text_config": part} | ({} if top is None else {name: top})
  assert from_hf(config).tie_embeddings is want
  with pytest.raises(UserError, match="should be true or false, got 'no'"):
    from_hf(BASE | {name: "no"})


@pytest.mark.parametrize(
  ("given", "method"),
  [
    ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8"),
    ({"quant_method": "awq", "bits": 4}, "awq"),
    ({"quant_method": "gptq", "bits": 4}, "gptq"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
    ({"quant_algo": "NVFP4", "producer": {"name": "modelopt"}}, "NVFP4"),
    ({"bits": 4, "group_size": 128}, "4"),
    ({"x": 1}, "an unnamed method"),
    ("fp8", "'fp8'"),
  ],
)
def test_quantised_releases_are_refused_by_name(given, method):
  message = f"quantised as {method}, which is not read; use the bf16 release"
  text = BASE | {"model_type": "ministral3"}
  for config in (
    BASE | {"quantization_config": given},
    {"text_config": text, "quantization_config": given},
    {"text_config": text | {"quantization_config": given}},
    BASE | {"compression_config": given},
  ):
    with pytest.raises(UserError, match=message):
      from_hf(config)
  for nothing in (None, {}):
    assert from_hf(BASE | {"quantization_config": nothing}) == preset("tiny")
