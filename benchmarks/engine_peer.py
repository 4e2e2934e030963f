"""Fixed batches of 16, in the order of the prompts, by any checkout.

    PYTHONPATH=CHECKOUT python benchmarks/engine_peer.py MODE

The first line of standard input is JSON, [[prompt ids, max_new_tokens], ...].
Each further line runs them all once, with the embedded checkpoint, and is
answered by a line with the number of tokens. Nothing is imported here that an
older checkout does not have.
"""

import json
import sys

from nemodiff_jax import api
from nemodiff_jax.decode.config import DecodeConfig, RowSettings, decode_config
from nemodiff_jax.decode.generate import decode_ids


def fixed(model: api.Model, config: DecodeConfig, prompts, rows) -> int:
  """Tokens of batches of 16 in the compiled loop, in their order."""
  done, size = 0, min(16, len(prompts))
  for at in range(0, len(prompts), size):
    part, own = prompts[at : at + size], rows[at : at + size]
    outs = decode_ids(
      model.module, model.weights, config, part, own, batch=size
    )
    done += sum(len(o.token_ids) for o in outs)
  return done


def main() -> None:
  model = api.load(None)
  config = decode_config(model.config, sys.argv[1])
  jobs = json.loads(sys.stdin.readline())
  prompts = [prompt for prompt, _ in jobs]
  rows = [RowSettings(count, ignore_eos=True) for _, count in jobs]
  for _ in sys.stdin:
    print(fixed(model, config, prompts, rows), flush=True)


if __name__ == "__main__":
  main()
