"""Fixed batches of 16, in the order of the prompts, by any checkout.

    PYTHONPATH=CHECKOUT python benchmarks/engine_peer.py MODE

The first line of standard input is JSON, [[prompt ids, max_new_tokens], ...].
Each further line runs them all once, with the embedded checkpoint, and is
answered by a line with the number of tokens.
"""

import json
import sys

from nemodiff_jax import api
from nemodiff_jax.decode.config import RowSettings, decode_config
from nemodiff_jax.decode.generate import decode_ids

BATCH = 16


def main() -> None:
  model = api.load(None)
  config = decode_config(model.config, sys.argv[1])
  jobs = json.loads(sys.stdin.readline())
  prompts = [prompt for prompt, _ in jobs]
  rows = [RowSettings(count, ignore_eos=True) for _, count in jobs]
  for _ in sys.stdin:
    done = 0
    for at in range(0, len(jobs), BATCH):
      part = slice(at, at + BATCH)
      outputs = decode_ids(
        *(model.module, model.weights, config, prompts[part], rows[part]),
        batch=BATCH,
      )
      done += sum(len(o.token_ids) for o in outputs)
    print(done, flush=True)


if __name__ == "__main__":
  main()
