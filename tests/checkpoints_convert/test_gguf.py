"""Tri-mode checkpoints from GGUF files."""

import dataclasses
import json

import gguf
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file

from checkpoints_convert import trimode
from checkpoints_convert.gguf_source import Gguf
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import open_checkpoint, tensor_table
from nemodiff_jax.nn.config import preset

VOCAB = 296
TEXT = "It's 12 o'clock, naïve café —\n\n  x = 3.14159; don't <|end|> ok?"


def to_pairs(value, heads):
  """GGUF's order of q and k: the halves of a head's rows, interleaved."""
  out, size = np.empty_like(value), len(value) // heads
  for head in range(heads):
    for i in range(size // 2):
      row = head * size
      out[row + 2 * i] = value[row + i]
      out[row + 2 * i + 1] = value[row + size // 2 + i]
  return out


THEIRS = {
  "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
  "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
  "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def gguf_tensors(released):
  """The tensors of a released folder under their GGUF names."""
  out = {
    "token_embd.weight": released["encoder.embed_tokens.weight"],
    "output_norm.weight": released["encoder.norm.weight"],
  }
  for i in range(2):
    for ours, theirs in THEIRS.items():
      value = released[f"encoder.layers.{i}.{ours}.weight"]
      heads = {"attn_q": 4, "attn_k": 2}.get(theirs)
      value = to_pairs(value, heads) if heads else value
      out[f"blk.{i}.{theirs}.weight"] = value
  return out


@pytest.fixture(scope="module")
def released():
  """Tensors of a tiny Llama with tied embeddings; widths of blocks of 32."""
  config = dataclasses.replace(
    preset("tiny"), vocab_size=VOCAB, hidden_size=64, tie_embeddings=True
  )
  draw = np.random.default_rng(0).standard_normal
  return {
    name: draw(tensor.shape, np.float32)
    for name, tensor in tensor_table(config).items()
  }


@pytest.fixture(scope="module")
def bpe():
  """A byte-level BPE tokenizer with SmolLM's rules, of VOCAB tokens."""
  made = tokenizers.Tokenizer(tokenizers.models.BPE())
  made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Digits(individual_digits=True),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  made.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=VOCAB,
    special_tokens=["<|x|>", "<|start|>", "<|end|>", "<|none|>"],
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  made.train_from_iterator([TEXT * 3, "the other one then " * 9], trainer)
  return made


@pytest.fixture
def make_gguf(tmp_path, released, bpe):
  """Writes a GGUF file; arguments replace parts of it."""

  def make(kind="F32", arch="llama", pre="smollm", more=(), **changes):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    vocab = sorted(bpe.get_vocab(), key=bpe.get_vocab().get)
    writer.add_token_list(vocab)
    writer.add_token_types([3] * 4 + [1] * (len(vocab) - 4))
    merges = json.loads(bpe.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(m) for m in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{{ messages[0].content }}")
    for add in more:
      add(writer)
    for name, value in (gguf_tensors(released) | changes).items():
      if value is None:
        continue
      if value.ndim == 2 and kind not in ("F32", "F16"):
        quant = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(
          name, gguf.quants.quantize(value, quant), raw_dtype=quant
        )
      else:
        cast = np.float16 if kind == "F16" and value.ndim == 2 else value.dtype
        writer.add_tensor(name, value.astype(cast))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

  return make


def made(path, tmp_path, mask="<|none|>"):
  target = tmp_path / "target"
  trimode.ar_to_trimode(str(path), str(target), mask, 8, overwrite=True)
  return open_checkpoint(str(target))


@pytest.mark.parametrize(
  "kind, error", [("F32", 0), ("F16", 1e-3), ("Q8_0", 0.02), ("Q4_1", 0.3)]
)
def test_gguf_gives_back_what_went_in(
  make_gguf, released, tmp_path, kind, error
):
  path = make_gguf(kind)
  opened = made(path, tmp_path)
  got = load_file(opened.folder / "model.safetensors")
  head = got.pop("diffusion_head.weight")
  np.testing.assert_array_equal(head, got["encoder.embed_tokens.weight"])
  assert got.keys() == released.keys()
  for name, value in released.items():
    assert np.abs(got[name] - value).max() <= error * np.abs(value).max(), name
  config = opened.config
  assert config.rope.theta == 1e4 and config.rope.factor is None
  assert (config.mask_id, config.bos_id, config.eos_ids) == (3, 1, (2,))
  assert (config.block_size, config.head_dim) == (8, 16)
  assert abs(config.rms_norm_eps - 1e-5) < 1e-10


def test_gguf_tokenizer_and_template_are_carried(make_gguf, tmp_path, bpe):
  opened = made(make_gguf(), tmp_path)
  ids = bpe.encode(TEXT).ids
  assert opened.tokenizer.encode_rendered(TEXT) == ids
  typed = TEXT.replace("<|end|>", "")
  assert opened.tokenizer.encode(typed) == [1, *bpe.encode(typed).ids]
  assert opened.tokenizer.decode(ids) == TEXT.replace("<|end|>", "")
  assert opened.template.tokens["eos_token"] == "<|end|>"
  message = [{"role": "user", "content": "hi"}]
  assert opened.template.render(message) == "hi"


def test_gguf_templates_with_names_are_carried(make_gguf, tmp_path):
  named = [{"name": "tool_use", "template": "tools"}]
  path = make_gguf(more=[lambda w: w.add_chat_template(named)])
  template = made(path, tmp_path).template
  asked = [{"role": "user", "content": "hi"}]
  assert template.render(asked) == "hi"
  assert template.render(asked, tools=[]) == "tools"


def test_gguf_templates_stay_in_their_folder(make_gguf, tmp_path):
  names = lambda w: w.add_array("tokenizer.chat_templates", ["../x"])
  refused(make_gguf(more=[names]), tmp_path, r"names of letters.*'\.\./x'")


def refused(path, tmp_path, message):
  with pytest.raises(UserError, match=message):
    made(path, tmp_path)
  assert not (tmp_path / "target").exists()


def test_gguf_of_an_unsupported_type(make_gguf, tmp_path):
  changes = {"blk.1.attn_v.weight": np.ones((32, 64), np.int32)}
  path = make_gguf(**changes)
  name = "encoder.layers.1.self_attn.v_proj.weight"
  refused(
    path, tmp_path, f"'{name}' is of type I32, which cannot be made float"
  )


def test_gguf_of_another_family(make_gguf, tmp_path):
  path = make_gguf(arch="bert")
  refused(path, tmp_path, "architecture should be 'llama', got 'bert'")


def test_gguf_with_scaled_rope(make_gguf, tmp_path):
  yarn = lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
  path = make_gguf(more=[yarn])
  refused(path, tmp_path, "rope.scaling.type should be 'none', got 'yarn'")


def test_gguf_with_another_tokenizer(make_gguf, tmp_path):
  path = make_gguf(pre="qwen2")
  refused(path, tmp_path, r"should be 'gpt2' of kind \['gpt-2', 'smollm'\]")


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("attention.head_count", 0, "model.gguf: .*num_heads should be .*, got 0"),
    ("context_length", None, "model.gguf: llama.context_length is missing"),
    ("attention.head_count", "4", "value of the metadata is of the wrong type"),
    ("token_type", None, "token_type should have .* each of 296 tokens, got 0"),
    ("merges", ["a zz"], "no tokenizer can be made .*out of vocabulary"),
    ("unknown_token_id", 999, "no tokenizer can be made .*IndexError"),
  ],
)
def test_gguf_with_wrong_metadata(
  make_gguf, tmp_path, monkeypatch, key, value, message
):
  """A key that is read as another value."""
  read = Gguf.get

  def get(self, name, default=None):
    if not name.endswith(f".{key}"):
      return read(self, name, default)
    return default if value is None else value

  monkeypatch.setattr(Gguf, "get", get)
  refused(make_gguf(), tmp_path, message)


@pytest.mark.parametrize(
  "name, value, message",
  [
    (
      "blk.0.ffn_up.weight",
      None,
      "'encoder.layers.0.mlp.up_proj.weight' is mi",
    ),
    ("rope_freqs.weight", np.ones(8, np.float32), "unknown tensor 'rope_freqs"),
    (
      "output_norm.weight",
      np.ones(9, np.float32),
      r"shape \(64,\) by the .*9,",
    ),
    ("output_norm.weight", np.full(64, np.inf, np.float32), "NaN or Inf at"),
  ],
)
def test_gguf_with_a_wrong_tensor(make_gguf, tmp_path, name, value, message):
  path = make_gguf(**{name: value})
  refused(path, tmp_path, message)


def test_truncated_gguf(make_gguf, tmp_path):
  path = make_gguf()
  path.write_bytes(path.read_bytes()[:-5000])
  refused(path, tmp_path, "model.gguf: not a complete GGUF file")
  path.write_bytes(b"GGUF")
  refused(path, tmp_path, "model.gguf: not a complete GGUF file")
