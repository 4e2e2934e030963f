"""One batch for the tests of every mode: they share its programs.

A program is made for a number of rows, the chunk and the pages of the longest
prompt with its output, the columns of stop ids, and the kind of sampling
(greedy, plain, filtered). So tests take all the prompts, at most 48 tokens,
and at most three stop ids.
"""

from nemodiff_jax.decode.config import RowSettings, decode_config
from tests import helpers

SIZES = (3, 64, 8, 1, 30, 17, 5, 21)  # The longest is among the first three.
SEED = 11  # Drafts behind these prompts are refused and taken, in all modes.
LIMITS = (20, 16, 1, 7, 40, 33, 31, 12)
STOPS = (58, 44, 90)  # The first ends many a row, the last none.
MODES = {
  "ar": {},
  "diffusion": {"threshold": 0.5},
  "linear_spec": {},
  "quadratic_spec": {"block_length": 8},
}
SAMPLING = [
  {"temperature": 0.7},
  {"temperature": 1.3, "top_k": 5},
  {"temperature": 1.0, "top_p": 0.8},
  {"temperature": 0.9, "min_p": 0.1},
  {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
  {"temperature": 0.0},
]


def prompts_of(tiny, seed=SEED):
  return helpers.prompts_of(tiny.config, SIZES, seed)


def unsaid(tiny):
  """An id that no prompt holds."""
  held = {i for prompt in prompts_of(tiny) for i in prompt}
  return max(set(range(tiny.config.vocab_size)) - held)


def rows(stops=()):
  return [RowSettings(max_new_tokens=n, stop_token_ids=stops) for n in LIMITS]


def decode(tiny, mode, settings, seed=SEED, **more):
  """The prompts with these settings, or all of them with this one."""
  config = decode_config(tiny.config, mode, **MODES[mode])
  if isinstance(settings, RowSettings):
    settings = [settings] * len(SIZES)
  prompts = prompts_of(tiny, seed)
  return tiny.decode(config, prompts, settings, lora=True, **more)
