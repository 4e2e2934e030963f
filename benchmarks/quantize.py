"""What int8 weights change: logits, perplexity, greedy text; and what not.

    .venv/bin/python -m benchmarks.quantize                # embedded checkpoint
    make smollm2
    .venv/bin/python -m benchmarks.quantize --checkpoint=.cache/smollm2

The embedded checkpoint reads its held-out questions and answers (answers are
scored), any other one pages of Python's language reference (`pydoc_data`).
Both models run in float32, so that the difference is the rounding alone. Then
the two speculative modes are compared with ar, all of them quantised.
"""

import functools
import itertools
import os
import platform
import pydoc_data.topics
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from nemodiff_jax import api
from nemodiff_jax.api import Model
from nemodiff_jax.decode.config import RowSettings
from nemodiff_jax.decode.memory import param_bytes
from nemodiff_jax.nn.attention import CachedPass
from nemodiff_jax.nn.cache import init_cache, own_pages
from nemodiff_jax.nn.model import cached_pass, head
from train import arithmetic

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Default: embedded.")
_WINDOWS = flags.DEFINE_integer("windows", 8, "Texts to read.")
_WIDTH = flags.DEFINE_integer("width", 512, "Tokens of a page.")
_REPLY = flags.DEFINE_integer("reply", 32, "Tokens to generate per prompt.")
SPECULATIVE = {  # Small blocks: a model that was never trained to draft.
  "linear_spec": {"block_length": 4},
  "quadratic_spec": {"block_length": 4},
}


def texts(model: Model) -> Iterator[tuple[list[int], int]]:
  """(ids, where scoring begins) of each text."""
  if model.tokenizer is None:
    raise SystemExit("expected a checkpoint with a tokenizer")
  if _CHECKPOINT.value is None:
    for family in arithmetic.FAMILIES:
      for question, answer, _ in arithmetic.held_out(family, 100):
        prompt = api.prepare(
          model, [{"role": "user", "content": question}], RowSettings()
        )
        reply = [*model.tokenizer.encode(answer)[1:], model.config.eos_ids[0]]
        yield prompt + reply, len(prompt)
    return
  pages = "\n".join(pydoc_data.topics.topics.values())
  ids = model.tokenizer.encode(pages[: 8 * _WIDTH.value * _WINDOWS.value])
  for at in range(_WINDOWS.value):
    yield ids[at * _WIDTH.value :][: _WIDTH.value], 1


def logits_of(model: Model, ids: list[int], width: int) -> np.ndarray:
  """[T, V] of a causal pass, padded to `width`."""
  return np.asarray(
    _logits(model.module, model.weights.params, _pad(ids, width))
  )[: len(ids)]


@functools.partial(jax.jit, static_argnums=0)
def _logits(module, params, tokens):
  positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
  table = own_pages(1, tokens.shape[1])
  where = CachedPass(positions, positions, positions + 1, table)
  cache = init_cache(module.config, table.size, module.dtype)
  hidden, _ = cached_pass(module, params, tokens, where, cache)
  return head(module, params, hidden[0])


def _pad(ids: list[int], width: int) -> np.ndarray:
  return np.array([ids + [0] * (width - len(ids))], np.int32)


def log_softmax(x: np.ndarray) -> np.ndarray:
  x = x.astype(np.float64) - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def compare(full: Model, int8: Model) -> None:
  """Teacher-forced: every text through both models."""
  count = same = 0
  losses, squares, size, largest = [], 0.0, 0.0, 0.0
  found = list(texts(full))
  width = max(len(ids) for ids, _ in found)
  for ids, begin in found:
    scored = slice(begin - 1, len(ids) - 1)
    a, b = (logits_of(m, ids, width)[scored] for m in (full, int8))
    goal = np.array(ids[begin:])[:, None]
    losses.append(
      [-np.take_along_axis(log_softmax(x), goal, 1)[:, 0] for x in (a, b)]
    )
    squares += ((a - b) ** 2).mean(1).sum()
    size += a.var(1).sum()
    largest = max(largest, float(np.abs(a - b).max()))
    same += (a.argmax(1) == b.argmax(1)).sum()
    count += len(goal)
  loss, loss8 = np.concatenate(losses, 1)
  one, other = np.exp(loss.mean()), np.exp(loss8.mean())
  deviation = 100 * (loss8 - loss).std() / count**0.5
  print(f"""\
| {count:,} scored tokens | float32 | int8 |
|---|---|---|
| parameters, MB | {_megabytes(full, "none")} | {_megabytes(int8, "int8")} |
| perplexity | {one:.5g} | {other:.5g} ({100 * (other / one - 1):+.3f} % \u00b1 {deviation:.3f}) |
| logit error, root mean square | | {(squares / count) ** 0.5:.4f} |
| ... against the logits' deviation | | {100 * (squares / size) ** 0.5:.2f} % |
| logit error, largest | | {largest:.3f} |
| same greedy token | | {100 * same / count:.2f} % |""")


def _megabytes(model: Model, scheme: str) -> str:
  return f"{param_bytes(model.config, jnp.dtype('float32'), scheme) / 1e6:.1f}"


def decoded(full: Model, int8: Model) -> None:
  """Free-running: the replies of both, and every exact mode of the latter."""
  prompts = [ids[: max(begin, 24)] for ids, begin in texts(full)]
  prompts = prompts[:: -(-len(prompts) // 10)]
  how = {"max_new_tokens": _REPLY.value, "batch_size": len(prompts)}
  one = api.generate(full, prompts, mode="ar", **how)
  ar = api.generate(int8, prompts, mode="ar", **how)
  agree = [
    len(list(itertools.takewhile(lambda t: t[0] == t[1], pairs)))
    for pairs in (
      zip(a.token_ids, b.token_ids, strict=False)
      for a, b in zip(one, ar, strict=True)
    )
  ]
  total = sum(len(o.token_ids) for o in one)
  whole = sum(a.token_ids == b.token_ids for a, b in zip(one, ar, strict=True))
  print(
    f"| equal replies of {len(prompts)} | | {whole} |\n"
    f"| tokens before the first other one | {total} | {sum(agree)} |"
  )
  for mode, more in SPECULATIVE.items():
    outs = api.generate(int8, prompts, mode=mode, **how, **more)
    equal = sum(
      a.token_ids == b.token_ids for a, b in zip(ar, outs, strict=True)
    )
    passes = sum(o.nfe for o in outs)
    rate = sum(o.completion_tokens for o in outs) / passes
    print(
      f"| {mode}, int8: replies equal to int8 ar | |"
      f" {equal} of {len(outs)} ({rate:.2f} tokens per forward) |"
    )


def main(_) -> None:
  jax.config.update("jax_default_matmul_precision", "highest")
  print(
    f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores {platform.machine()},"
    f" Python {platform.python_version()}, jax {jax.__version__},"
    f" {_CHECKPOINT.value or 'embedded checkpoint'}\n"
  )
  full, int8 = (
    api.load(_CHECKPOINT.value, dtype="float32", lora="none", quantize=scheme)
    for scheme in ("none", "int8")
  )
  compare(full, int8)
  decoded(full, int8)


if __name__ == "__main__":
  app.run(main)
