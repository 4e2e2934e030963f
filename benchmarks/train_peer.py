"""The joint training step in torch, with a dense mask: train.py's peer.

Run by train.py, possibly with another Python (PEER_PYTHON). argv: an npz of
sizes, parameters and one batch. Answers each line of stdin with {"seconds",
"loss"} of one step (forward, backward, AdamW).
"""

import json
import sys
import time

import numpy as np


def main() -> None:
  import torch
  from torch.nn import functional as F

  data = np.load(sys.argv[1])
  c = json.loads(str(data["config"]))
  given = {k: torch.from_numpy(data[k]) for k in data.files if k != "config"}
  weights = {
    k.removeprefix("p:"): torch.nn.Parameter(x)
    for k, x in given.items()
    if k.startswith("p:")
  }
  optimizer = torch.optim.AdamW(weights.values(), lr=1e-4, weight_decay=0.1)
  half = torch.arange(0, c["head"], 2).float() / c["head"]
  angle = given["positions"][:, None, :, None].float() * c["theta"] ** -half
  cos, sin = angle.cos(), angle.sin()

  def norm(x, w):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + c["eps"]) * w

  def heads(x, count):
    return x.view(*x.shape[:2], count, c["head"]).transpose(1, 2)

  def rotate(x):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

  def loss():
    x = weights["embed_tokens/embedding"][given["tokens"]]
    for i in range(c["layers"]):
      w = {
        k.removeprefix("layers/"): v[i]
        for k, v in weights.items()
        if k.startswith("layers/")
      }
      y = norm(x, w["input_layernorm/weight"])
      q, k, v = (
        heads(y @ w[f"self_attn/{n}_proj/kernel"], c[m])
        for n, m in zip("qkv", ("heads", "kv", "kv"), strict=True)
      )
      y = F.scaled_dot_product_attention(
        rotate(q), rotate(k), v, given["mask"][:, None], enable_gqa=True
      )
      y = y.transpose(1, 2).flatten(2)
      x = x + y @ w["self_attn/o_proj/kernel"]
      y = norm(x, w["post_attention_layernorm/weight"])
      gate = F.silu(y @ w["mlp/gate_proj/kernel"])
      up = y @ w["mlp/up_proj/kernel"]
      x = x + (gate * up) @ w["mlp/down_proj/kernel"]
    logits = norm(x, weights["norm/weight"]) @ weights["diffusion_head/kernel"]
    each = F.cross_entropy(
      logits.flatten(0, 1), given["target"].flatten(), reduction="none"
    )
    return (each * given["weight"].flatten()).sum()

  print(json.dumps({"torch": torch.__version__}), flush=True)
  for _ in sys.stdin:
    start = time.perf_counter()
    optimizer.zero_grad()
    value = loss()
    value.backward()
    optimizer.step()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "loss": value.item()}), flush=True)


if __name__ == "__main__":
  main()
