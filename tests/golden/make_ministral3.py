"""Makes ministral3.npz with transformers' Ministral3, in float32.

    python tests/golden/make_ministral3.py

Needs torch and transformers, which the tests themselves do not. Weights are
drawn by `weights` below from a NumPy seed, so that the file holds logits only.
"""

import datetime
import json
from pathlib import Path

import numpy as np

LENGTH = 200  # Crosses the query scale's steps at 64, 128 and 192.
SIZES = {
  "vocab_size": 48,
  "hidden_size": 40,
  "intermediate_size": 64,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 16,
  "max_position_embeddings": 1024,
  "rms_norm_eps": 1e-5,
}
YARN = {
  "rope_type": "yarn",
  "rope_theta": 10000.0,
  "factor": 16.0,
  "original_max_position_embeddings": 64,
  "beta_fast": 32.0,
  "beta_slow": 1.0,
  "mscale": 1.0,
  "mscale_all_dim": 1.0,
  "llama_4_scaling_beta": 0.1,
}
CASES = {
  "yarn": {"rope_parameters": YARN},
  "shrunk": {"rope_parameters": YARN | {"factor": 0.25}},  # As in 3B-Base.
  "plain": {
    "rope_parameters": {
      "rope_type": "default",
      "rope_theta": 10000.0,
      "original_max_position_embeddings": 64,
      "llama_4_scaling_beta": 0.0,
    },
    "tie_word_embeddings": True,
  },
}


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
  """Values of named tensors; norms near one, the rest as wide as fits."""
  rng = np.random.default_rng(20261123)
  made = {}
  for name in sorted(shapes):
    value = rng.standard_normal(shapes[name]).astype(np.float32)
    norm = len(shapes[name]) == 1
    made[name] = 1 + value * 0.1 if norm else value * shapes[name][-1] ** -0.5
  return made


def tokens() -> np.ndarray:
  """[1, LENGTH] token ids."""
  rng = np.random.default_rng(7)
  return rng.integers(0, SIZES["vocab_size"], (1, LENGTH))


def main() -> None:
  import torch
  import transformers

  out = {}
  for name, case in CASES.items():
    config = transformers.Ministral3Config(
      **SIZES, **case, attn_implementation="eager", pad_token_id=0
    )
    model = transformers.Ministral3ForCausalLM(config).float().eval()
    state = model.state_dict()
    if config.tie_word_embeddings:
      del state["lm_head.weight"]
    drawn = weights({k: tuple(v.shape) for k, v in state.items()})
    model.load_state_dict(
      {k: torch.from_numpy(v) for k, v in drawn.items()}, strict=False
    )
    model.tie_weights()
    everyone = torch.zeros(1, 1, LENGTH, LENGTH)
    with torch.no_grad():
      for way, mask in (("causal", None), ("bidirectional", everyone)):
        logits = model(
          torch.from_numpy(tokens()), attention_mask=mask, use_cache=False
        ).logits[0]
        keep = slice(None) if name == "yarn" else slice(0, None, 7)
        out[f"{name}_{way}"] = logits[keep].numpy()
  about = {
    "made": datetime.date.today().isoformat(),
    "transformers": transformers.__version__,
    "torch": torch.__version__,
  }
  path = Path(__file__).with_name("ministral3.npz")
  np.savez_compressed(path, about=json.dumps(about), **out)
  print(path, {k: v.shape for k, v in out.items()}, path.stat().st_size, about)


if __name__ == "__main__":
  main()
