"""Makes rope.npz: logits of transformers' Ministral3 at unusual YaRN settings.

    python -m tests.golden.make_rope

The released models have factors that are 1; here none is. Needs torch and
transformers, which the tests themselves do not.
"""

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.make_ministral3 import SIZES, YARN, tokens, weights

EVERY = 25  # Rows of logits that are kept.
TOP = "original_max_position_embeddings"


def _yarn(*drop: str, **changes: Any) -> dict[str, Any]:
  kept = {k: v for k, v in YARN.items() if k not in drop}
  return {"rope_parameters": kept | changes}


CASES = {
  "attention_factor": _yarn(attention_factor=1.5),
  "mscale": _yarn(mscale=2.0, mscale_all_dim=0.5),
  "mscale_alone": _yarn("mscale_all_dim", mscale=0.707),
  "all_dim_alone": _yarn("mscale", mscale_all_dim=0.707),
  "no_mscale": _yarn("mscale", "mscale_all_dim"),
  "no_truncate": _yarn(truncate=False),
  "truncate_null": _yarn(truncate=None),
  "betas": _yarn(beta_fast=6.0, beta_slow=2.0),
  "betas_one": _yarn(beta_fast=3.0, beta_slow=3.0, truncate=False),
  "betas_reversed": _yarn(beta_fast=1.0, beta_slow=32.0),
  "factor_one": _yarn("mscale", "mscale_all_dim", factor=1.0),
  "factor_small": _yarn("mscale", "mscale_all_dim", factor=0.5),
  "query_scale": _yarn(llama_4_scaling_beta=0.7),
  "original_at_the_top": _yarn() | {TOP: 32},
  "old_name": {
    "rope_scaling": {k: v for k, v in YARN.items() if k != "rope_theta"},
    "rope_theta": 5000.0,
  },
  "tiny_eps": _yarn() | {"rms_norm_eps": 0.5},
  "linear_one": {
    "rope_parameters": {
      "rope_type": "linear",
      "factor": 1.0,
      "rope_theta": 1e4,
      TOP: 64,
      "llama_4_scaling_beta": 0.1,
    }
  },
}


def main() -> None:
  import torch
  import transformers

  out = {}
  for name, case in CASES.items():
    config = transformers.Ministral3Config(
      **(SIZES | case), attn_implementation="eager", pad_token_id=0
    )
    model = transformers.Ministral3ForCausalLM(config).float().eval()
    state = model.state_dict()
    drawn = weights({k: tuple(v.shape) for k, v in state.items()})
    model.load_state_dict({k: torch.from_numpy(v) for k, v in drawn.items()})
    with torch.no_grad():
      logits = model(torch.from_numpy(tokens()), use_cache=False).logits[0]
    out[name] = logits[::EVERY].numpy()
  about = {
    "made": datetime.date.today().isoformat(),
    "transformers": transformers.__version__,
    "torch": torch.__version__,
  }
  path = Path(__file__).with_name("rope.npz")
  np.savez_compressed(path, about=json.dumps(about), **out)
  print(path, path.stat().st_size, about)


if __name__ == "__main__":
  main()
