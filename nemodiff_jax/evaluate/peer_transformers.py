"""Greedy `generate` of transformers' Ministral3 on a released-layout folder.

Run by `peer.py`, possibly with another Python (PEER_PYTHON). Reads one JSON
line {"prompts", "tokens"} at a time, answers {"seconds", "ids"}.
"""

import json
import sys
import time
from pathlib import Path


def main() -> None:
  """Loads the folder named by the first argument, and serves."""
  import torch
  import transformers
  from safetensors.torch import load_file

  folder = Path(sys.argv[1])
  given = json.loads((folder / "config.json").read_text())
  for key in ("architectures", "model_type", "dlm_paradigm"):
    given.pop(key, None)
  config = transformers.Ministral3Config(**given)
  model = transformers.Ministral3ForCausalLM(config).float().eval()
  state = {
    name.replace("encoder.", "model.").replace("diffusion_head", "lm_head"): x
    for file in sorted(folder.glob("*.safetensors"))
    for name, x in load_file(file).items()
  }
  model.load_state_dict(state)
  versions = {
    "torch": torch.__version__,
    "transformers": transformers.__version__,
  }
  print(json.dumps(versions), flush=True)
  pad = model.config.vocab_size - 1  # No row ends early: it never shows.
  for line in sys.stdin:
    job = json.loads(line)
    prompt = torch.tensor(job["prompts"])
    how = dict(max_new_tokens=job["tokens"], min_new_tokens=job["tokens"])
    start = time.perf_counter()
    with torch.no_grad():
      out = model.generate(prompt, do_sample=False, pad_token_id=pad, **how)
    seconds = time.perf_counter() - start
    ids = out[:, prompt.shape[1] :].tolist()
    print(json.dumps({"seconds": seconds, "ids": ids}), flush=True)


if __name__ == "__main__":
  main()
