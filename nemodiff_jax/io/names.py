"""The one table between tensor names of checkpoints and parameter paths.

Three layouts hold the same model under different names; each maps to the
released one (`encoder.*`, `diffusion_head.weight`). Matrices are [out, in] in
checkpoints and [in, out] in the parameter tree.
"""

import dataclasses
import re

STEMS = (
  ("encoder.", "diffusion_head.weight"),  # nemotron_labs_diffusion
  ("model.language_model.", "lm_head.weight"),  # multimodal, newer
  ("language_model.model.", "language_model.lm_head.weight"),  # multimodal
  ("model.", "lm_head.weight"),  # ministral3
)
VISION = (
  "vision_tower.",
  "vision_encoder.",
  "multi_modal_projector.",
  "model.vision_tower.",
  "model.multi_modal_projector.",
)
# Buffers that older programs saved: made anew, never read.
_LEFTOVER = re.compile(
  r"(^|.*\.)(rotary_emb\..+|rotary_pos_emb\..+|(original_)?inv_freq"
  r"|position_ids|masked_bias|(self_)?att(entio)?n\.bias|causal_mask)"
)
GGUF = {  # Of the Llama family: blk.N.X.weight, and these without a number.
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_output": "self_attn.o_proj",
  "attn_norm": "input_layernorm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
  "ffn_norm": "post_attention_layernorm",
  "token_embd": "encoder.embed_tokens",
  "output_norm": "encoder.norm",
  "output": "diffusion_head",
}
_GGUF_NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.weight")


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One tensor of the released layout.

  Attributes:
    path: where it lives in the parameter tree.
    shape: in the checkpoint.
    transposed: whether the tree holds its transpose.
  """

  path: tuple[str, ...]
  shape: tuple[int, ...]
  transposed: bool


Table = dict[str, Tensor]  # By released name.


def released_tensors(
  *,
  vocab: int,
  hidden: int,
  ffn: int,
  layers: int,
  heads: int,
  kv_heads: int,
  head_dim: int,
  tied: bool,
) -> dict[str, Tensor]:
  """Every tensor of a checkpoint of these sizes, by released name."""
  matrices = {
    "self_attn.q_proj": (heads * head_dim, hidden),
    "self_attn.k_proj": (kv_heads * head_dim, hidden),
    "self_attn.v_proj": (kv_heads * head_dim, hidden),
    "self_attn.o_proj": (hidden, heads * head_dim),
    "mlp.gate_proj": (ffn, hidden),
    "mlp.up_proj": (ffn, hidden),
    "mlp.down_proj": (hidden, ffn),
  }
  norms = ("input_layernorm", "post_attention_layernorm")
  table = {
    "encoder.embed_tokens.weight": Tensor(
      ("embed_tokens", "embedding"), (vocab, hidden), False
    )
  }
  for i in range(layers):
    stem, layer = f"encoder.layers.{i}", f"layers_{i}"
    for name, shape in matrices.items():
      path = (layer, *name.split("."), "kernel")
      table[f"{stem}.{name}.weight"] = Tensor(path, shape, True)
    for name in norms:
      path = (layer, name, "weight")
      table[f"{stem}.{name}.weight"] = Tensor(path, (hidden,), False)
  table["encoder.norm.weight"] = Tensor(("norm", "weight"), (hidden,), False)
  if not tied:
    table["diffusion_head.weight"] = Tensor(
      ("diffusion_head", "kernel"), (vocab, hidden), True
    )
  return table


def with_scales(table: dict[str, Tensor]) -> dict[str, Tensor]:
  """The table of the checkpoint in int8: every kernel has a scale beside it."""
  scales = {
    f"{name}_scale": Tensor((*t.path[:-1], "scale"), t.shape[:1], False)
    for name, t in table.items()
    if t.path[-1] == "kernel"
  }
  return table | scales


def released_name(name: str) -> str:
  """The released name of a tensor of any layout; unknown names unchanged."""
  for stem, head in STEMS:
    if name in (head, f"{head}_scale"):
      return "diffusion_head.weight" + name.removeprefix(head)
    if name.startswith(stem):
      return "encoder." + name.removeprefix(stem)
  return name


def gguf_name(name: str) -> str:
  """The released name of a GGUF tensor; unknown names unchanged."""
  match = _GGUF_NAME.fullmatch(name)
  if not match or match[2] not in GGUF:
    return name
  layer = f"encoder.layers.{match[1]}." if match[1] else ""
  return f"{layer}{GGUF[match[2]]}.weight"


def is_vision(name: str) -> bool:
  """Whether a tensor belongs to the image tower or its projector."""
  return name.startswith(VISION)


def is_leftover(name: str) -> bool:
  """Whether a tensor is a buffer without use, as `rotary_emb.inv_freq` is."""
  return _LEFTOVER.fullmatch(name) is not None
