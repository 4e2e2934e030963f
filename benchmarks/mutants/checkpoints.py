"""Breaks of how checkpoints are read; a part of those of decoding."""

from benchmarks.mutants import Mutation

_IO = "nemodiff_jax/io/"
_GENERATION = ("tests/io/test_generation.py",)
_CONFIG = ("tests/io/test_config_keys.py", "tests/io/test_hf_config.py")
_ROPE = ("tests/nn/test_model.py", "-k", "unusual")
_LORA = ("tests/io/test_lora.py",)
_GGUF = ("tests/checkpoints_convert/test_gguf_keys.py",)
_WEIGHTS = ("tests/io/test_weights.py",)
_HUB = ("tests/io/test_hub.py",)

MUTATIONS = (
  Mutation(
    "checkpoint: later stop ids replace the earlier",
    _IO + "generation.py",
    "(*eos_ids, *added)",
    "added or eos_ids",
    _GENERATION,
  ),
  Mutation(
    "checkpoint: stop id of the vocabulary's size",
    _IO + "generation.py",
    "0 <= token < vocab_size",
    "0 <= token <= vocab_size",
    _GENERATION,
  ),
  Mutation(
    "checkpoint: do_sample false is not greedy",
    _IO + "generation.py",
    "if sample is False:",
    "if sample is None:",
    _GENERATION,
  ),
  Mutation(
    "checkpoint: text config's stop ids hide the outer",
    _IO + "hf_config.py",
    "eos_ids=stop_ids(text, config)",
    "eos_ids=stop_ids(text)",
    _GENERATION,
  ),
  Mutation(
    "checkpoint: suggested settings win over flags",
    "nemodiff_jax/cli/flags.py",
    "if flag.present or flag.name not in suggested",
    "if flag.name not in suggested",
    ("tests/cli/test_generation_config.py",),
  ),
  Mutation(
    "checkpoint: settings are suggested unasked",
    "nemodiff_jax/cli/flags.py",
    'if GENERATION_CONFIG.value == "auto":',
    'if GENERATION_CONFIG.value != "off":',
    ("tests/cli/test_generation_config.py",),
  ),
  Mutation(
    "checkpoint: a stale index wins over the one file",
    _IO + "tensors.py",
    "return SINGLE in read_index(index).values()",
    "return True",
    _WEIGHTS,
  ),
  Mutation(
    "checkpoint: an older export's index stays",
    "checkpoints_convert/hf_folder.py",
    "    stale.unlink(missing_ok=True)",
    "    pass",
    _WEIGHTS,
  ),
  Mutation(
    "checkpoint: any name that ends alike is left over",
    _IO + "names.py",
    'r"(^|.*\\.)(rotary_emb',
    'r"(^|.*)(rotary_emb',
    _WEIGHTS,
  ),
  Mutation(
    "checkpoint: inner tie_word_embeddings wins",
    _IO + "hf_config.py",
    "_or(config, name, _or(text, name, False))",
    "_or(text, name, _or(config, name, False))",
    _CONFIG,
  ),
  Mutation(
    "checkpoint: foreign quantisation in the text part",
    _IO + "quantized.py",
    'texts = (config, config.get("text_config"))',
    "texts = (config,)",
    _CONFIG,
  ),
  Mutation(
    "checkpoint: rope_scaling may contradict",
    _IO + "hf_config.py",
    "if new[key] != old[key]:",
    "if new[key] is None:",
    _CONFIG,
  ),
  Mutation(
    "checkpoint: the rope's own original length wins",
    _IO + "hf_config.py",
    '_or(text, "original_max_position_embeddings", original)',
    'original or text.get("original_max_position_embeddings")',
    _ROPE,
  ),
  Mutation(
    "checkpoint: mscale without its counterpart",
    _IO + "hf_config.py",
    "if mscale and all_dim:",
    "if mscale or all_dim:",
    _ROPE,
  ),
  Mutation(
    "checkpoint: attention_factor is not read",
    _IO + "hf_config.py",
    'if given.get("attention_factor") is not None:',
    'if given.get("attention_factors") is not None:',
    _ROPE,
  ),
  Mutation(
    "checkpoint: attention factor on one of cos and sin",
    "nemodiff_jax/nn/layers.py",
    "jnp.sin(angles) * factor",
    "jnp.sin(angles)",
    _ROPE,
  ),
  Mutation(
    "checkpoint: YaRN's borders are always rounded",
    "nemodiff_jax/nn/layers.py",
    "  if rope.truncate:",
    "  if True:",
    _ROPE,
  ),
  Mutation(
    "checkpoint: beta_slow is always 1",
    _IO + "hf_config.py",
    'beta_slow=float(given.get("beta_slow") or 1.0)',
    "beta_slow=1.0",
    _ROPE,
  ),
  Mutation(
    "checkpoint: rms_norm_eps is always 1e-5",
    _IO + "hf_config.py",
    'float(_or(text, "rms_norm_eps", 1e-5))',
    "1e-5",
    _ROPE,
  ),
  Mutation(
    "checkpoint: layers_to_transform 0 means all",
    _IO + "peft_config.py",
    "if chosen is None or chosen == []:",
    "if not chosen:",
    _LORA,
  ),
  Mutation(
    "checkpoint: exclude_modules is not read",
    _IO + "peft_config.py",
    "if left_out and _named(left_out, module):",
    "if False:",
    _LORA,
  ),
  Mutation(
    "checkpoint: use_rslora is not read",
    _IO + "peft_config.py",
    'math.sqrt(rank) if given.get("use_rslora") else rank',
    "rank",
    _LORA,
  ),
  Mutation(
    "checkpoint: full names need the released stem",
    _IO + "lora.py",
    'next((m[1] for m in map(_match, names) if m), "encoder.")',
    '"encoder."',
    _LORA,
  ),
  Mutation(
    "checkpoint: GGUF window of one position less",
    "checkpoints_convert/gguf_keys.py",
    "value < fields.get(",
    "value + 1 < fields.get(",
    _GGUF,
  ),
  Mutation(
    "checkpoint: GGUF's older factor wins",
    "checkpoints_convert/gguf_keys.py",
    "if key not in of_model and",
    "if",
    _GGUF,
  ),
  Mutation(
    "checkpoint: GGUF factor of no type is not scaled",
    "checkpoints_convert/gguf_keys.py",
    'of_model.get("rope.scaling.type", "linear")',
    'of_model.get("rope.scaling.type", "none")',
    _GGUF,
  ),
  Mutation(
    "checkpoint: ./x may be a hub name",
    _IO + "hub.py",
    'name.startswith((".", "/", "~"))',
    'name.startswith(("/", "~"))',
    _HUB,
  ),
  Mutation(
    "checkpoint: all shards of a repository are fetched",
    _IO + "hub.py",
    "folder = fetch(map(glob.escape, shards))",
    'folder = fetch(["model-*"])',
    _HUB,
  ),
)
