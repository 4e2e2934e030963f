"""An independent twin: the model in NumPy without a cache, and each mode as a
plain loop over one row. Nothing here is shared with the library."""

import math

import numpy as np


class NumpyModel:
  """Full-recompute forward of the Ministral-3 stack with a dense mask."""

  def __init__(self, config, params, lora=None, lora_scale=1.0):
    self.c, self.p = config, params
    self.lora, self.lora_scale = lora, lora_scale

  def logits(self, tokens, positions, mask, drafting=None):
    """[T, V] float64; `drafting` marks the positions that use the LoRA."""
    c, w = self.c, lambda x: np.asarray(x, np.float64)
    x = w(self.p["embed_tokens"]["embedding"])[np.asarray(tokens)]
    for i in range(c.num_layers):
      layer = self.p[f"layers_{i}"]
      y = self._norm(x, w(layer["input_layernorm"]["weight"]))
      heads = {
        n: y @ w(layer["self_attn"][f"{n}_proj"]["kernel"]) for n in "qkv"
      }
      out = self._attend(heads, np.asarray(positions), mask)
      y = out @ w(layer["self_attn"]["o_proj"]["kernel"])
      if drafting is not None and self.lora is not None:
        a, b = (w(z) for z in self.lora[i])
        y = y + (out @ a.T @ b.T * self.lora_scale) * drafting[:, None]
      x = x + y
      y = self._norm(x, w(layer["post_attention_layernorm"]["weight"]))
      gate = y @ w(layer["mlp"]["gate_proj"]["kernel"])
      up = y @ w(layer["mlp"]["up_proj"]["kernel"])
      gate = gate / (1 + np.exp(-gate))
      x = x + (gate * up) @ w(layer["mlp"]["down_proj"]["kernel"])
    x = self._norm(x, w(self.p["norm"]["weight"]))
    return x @ w(self.p["diffusion_head"]["kernel"])

  def _norm(self, x, weight):
    return (
      x / np.sqrt((x**2).mean(-1, keepdims=True) + self.c.rms_norm_eps) * weight
    )

  def _attend(self, heads, positions, mask):
    c, out = self.c, []
    shape = lambda x, n: x.reshape(len(positions), n, c.head_dim)
    q = self._rotate(shape(heads["q"], c.num_heads), positions)
    k = self._rotate(shape(heads["k"], c.num_kv_heads), positions)
    v = shape(heads["v"], c.num_kv_heads)
    steps = np.floor(positions / c.rope.original_max)
    q = q * (1 + c.rope.query_scale * np.log(1 + steps))[:, None, None]
    for n in range(c.num_heads):
      g = n // (c.num_heads // c.num_kv_heads)
      s = q[:, n] @ k[:, g].T / math.sqrt(c.head_dim)
      s = np.where(mask, s, -np.inf)
      s = np.exp(s - s.max(-1, keepdims=True))
      out.append(s / s.sum(-1, keepdims=True) @ v[:, g])
    return np.concatenate(out, -1)

  def _rotate(self, x, positions):
    r, half = self.c.rope, self.c.head_dim // 2
    freq = []
    for i in range(half):
      f = r.theta ** (-2 * i / self.c.head_dim)
      turn = lambda b: (
        self.c.head_dim
        * math.log(r.original_max / (b * 2 * math.pi))
        / (2 * math.log(r.theta))
      )
      low = max(math.floor(turn(r.beta_fast)), 0)
      high = min(math.ceil(turn(r.beta_slow)), self.c.head_dim - 1)
      ramp = min(max((i - low) / max(high - low, 0.001), 0), 1)
      freq.append(f * (1 - ramp) + f / r.factor * ramp)
    angle = positions[:, None, None] * np.array(freq)
    a, b = x[..., :half], x[..., half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

  def causal(self, tokens):
    """Logits of an ordinary causal pass."""
    n = len(tokens)
    return self.logits(tokens, range(n), np.tril(np.ones((n, n), bool)))

  def block(self, prefix, block, lora=False):
    """Logits of a block that sees itself and a causal prefix."""
    n, m = len(prefix), len(block)
    mask = np.tril(np.ones((n + m, n + m), bool))
    mask[n:, n:] = True
    on = np.arange(n + m) >= n if lora else None
    return self.logits([*prefix, *block], range(n + m), mask, on)[n:]


def pick(model, logits):
  """Greedy token without the mask id, and its confidence with it."""
  quiet = logits.copy()
  quiet[..., model.c.mask_id] = -np.inf
  token = quiet.argmax(-1)
  p = np.exp(logits - logits.max(-1, keepdims=True))
  p = p / p.sum(-1, keepdims=True)
  return token, np.take_along_axis(p, token[..., None], -1)[..., 0]


def cut(out, limit, stops):
  """Ends at the first stop id and at the limit."""
  out = out[:limit]
  ends = [i for i, t in enumerate(out) if t in stops]
  return (out[: ends[0] + 1], "stop") if ends else (out, "length")


def ar(model, prompt, limit, stops):
  out = []
  while len(out) < limit and not set(out) & set(stops):
    out.append(int(pick(model, model.causal(prompt + out)[-1])[0]))
  return *cut(out, limit, stops), len(out), None


def diffusion(
  model, prompt, limit, stops, size, threshold, steps, following=()
):
  mask, out, nfe, done = model.c.mask_id, [], 0, list(prompt)
  while True:
    seed = int(pick(model, model.causal(done)[-1])[0])
    if out:
      nfe += 1  # The pass that committed the block before.
    room = limit - len(out)
    seen = ([mask] * room + list(following) + [mask] * size)[:size]
    sees = seen.count(mask) < size
    if seed in stops and not sees:
      return *cut([*out, seed], limit, stops), nfe, None
    block = seen if sees else [seed] + [mask] * (size - 1)
    began = sum(t == mask for t in block[:room])
    for s in range(steps or size):
      first = next((i for i, t in enumerate(block) if t in stops), size)
      if mask not in block[: min(first, room)]:
        break
      token, sure = pick(model, model.block(done, block))
      nfe += 1
      open_ = [i for i in range(min(size, room)) if block[i] == mask]
      count = began // (steps or size) + (s < began % (steps or size))
      if threshold is not None:
        count = max(count, 1)
      best = sorted(open_, key=lambda i: (-sure[i], i))[:count]
      for i in open_:
        if i in best or (threshold is not None and sure[i] >= threshold):
          block[i] = int(token[i])
    out, done = out + block[:room], done + block
    if len(out) >= limit or set(out) & set(stops):
      return *cut(out, limit, stops), nfe, None


def linear_spec(model, prompt, limit, stops, size, draft_threshold, lora):
  mask, nfe, accepted, done = model.c.mask_id, 1, [], list(prompt)
  out = [int(pick(model, model.causal(done)[-1])[0])]
  while len(out) < limit and not set(out) & set(stops):
    block = [out[-1]] + [mask] * (size - 1)
    first = True
    while mask in block or first:
      token, sure = pick(model, model.block(done, block, lora))
      nfe, first = nfe + 1, False
      open_ = [i for i in range(size) if block[i] == mask]
      best = min(open_, key=lambda i: (-sure[i], i), default=None)
      for i in open_:
        if i == best or sure[i] >= draft_threshold:
          block[i] = int(token[i])
    verified = pick(model, model.causal(done + block)[-size:])[0].tolist()
    nfe, n = nfe + 1, 1
    while n < size and verified[n - 1] == block[n]:
      n += 1
    out, done = out + verified[:n], done + block[:n]
    accepted.append(n)
  return *cut(out, limit, stops), nfe, accepted


def quadratic_spec(model, prompt, limit, stops, size):
  masks, nfe, accepted = [model.c.mask_id] * size, 1, []
  done = list(prompt)
  draft = pick(model, model.block(done, masks))[0].tolist()
  draft[0] = int(pick(model, model.causal(done)[-1])[0])
  out = [draft[0]]
  while len(out) < limit and not set(out) & set(stops):
    verified = pick(model, model.causal(done + draft)[-size:])[0].tolist()
    nfe, a = nfe + 1, 1
    while a < size and verified[a - 1] == draft[a]:
      a += 1
    ahead = pick(model, model.block(done + draft[:a], masks))[0].tolist()
    done, out = done + draft[:a], out + verified[:a]
    draft = [verified[a - 1], *ahead[1:]]
    accepted.append(a)
  return *cut(out, limit, stops), nfe, accepted
