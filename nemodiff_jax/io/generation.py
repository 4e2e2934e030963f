"""generation_config.json: more stop ids, and sampling that a release suggests.

Stop ids always count, beside those of config.json. The sampling settings only
do where they are asked for (--generation_config=auto).
"""

import json
import math
from pathlib import Path
from typing import Any

from nemodiff_jax.errors import UserError
from nemodiff_jax.io.hf_config import stop_ids

FILE = "generation_config.json"
# Settings that would change what is sampled, by the values that do not. What
# needs another search than sampling, or other penalties, is not computed.
_OFF = (None, 0, False)
_NOT_COMPUTED = {
  "repetition_penalty": (None, 1),
  "encoder_repetition_penalty": (None, 1),
  "presence_penalty": _OFF,
  "frequency_penalty": _OFF,
  "no_repeat_ngram_size": _OFF,
  "encoder_no_repeat_ngram_size": _OFF,
  "typical_p": (None, 1),
  "epsilon_cutoff": _OFF,
  "eta_cutoff": _OFF,
  "top_h": _OFF,
  "penalty_alpha": _OFF,
  "guidance_scale": (None, 1),
  "num_beams": (None, 1),
  "num_beam_groups": (None, 1),
  "diversity_penalty": _OFF,
  "dola_layers": _OFF,
  "min_length": _OFF,
  "min_new_tokens": _OFF,
  "exponential_decay_length_penalty": _OFF,
  "bad_words_ids": (None, []),
  "force_words_ids": (None, []),
  "sequence_bias": (None, {}, []),
  "suppress_tokens": (None, []),
  "begin_suppress_tokens": (None, []),
  "forced_bos_token_id": (None,),
  "forced_eos_token_id": (None,),
  "forced_decoder_ids": (None, []),
  "watermarking_config": (None, {}),
}
_READ = ("temperature", "top_k", "top_p", "min_p", "max_new_tokens")


def read_generation_config(folder: Path) -> dict[str, Any]:
  """The folder's generation_config.json; {} where there is none.

  Raises:
    UserError: it is no JSON object.
  """
  path = folder / FILE
  try:
    given = json.loads(path.read_text(encoding="utf-8-sig"))
  except FileNotFoundError:
    return {}
  except (OSError, ValueError, RecursionError) as e:
    raise UserError(f"{path}: expected JSON ({e}).") from e
  if not isinstance(given, dict):
    raise UserError(f"{path}: expected a JSON object.")
  return given


def with_stop_ids(
  eos_ids: tuple[int, ...], folder: Path, vocab_size: int, mask_id: int | None
) -> tuple[int, ...]:
  """Stop ids of config.json, and those that generation_config.json adds.

  Args:
    eos_ids: of config.json.
    folder: of the checkpoint.
    vocab_size: ids lie below it.
    mask_id: the mask, which cannot end a text.

  Raises:
    UserError: generation_config.json cannot be read, or names an id that
      cannot end a text.
  """
  added = stop_ids(read_generation_config(folder))
  for token in added:
    if type(token) is not int or not 0 <= token < vocab_size:
      raise UserError(
        f"{folder / FILE}: eos_token_id should lie in the vocabulary of"
        f" {vocab_size}, got {token!r}."
      )
    if token == mask_id:
      raise UserError(
        f"{folder / FILE}: eos_token_id {token} is the mask_token_id of"
        " config.json; a mask cannot end a text."
      )
  return tuple(dict.fromkeys((*eos_ids, *added)))


def sampling_defaults(folder: Path) -> dict[str, Any]:
  """The settings of rows that generation_config.json suggests.

  As other servers read them: temperature, top_k, top_p, min_p and
  max_new_tokens, each where it is given. do_sample false is greedy; do_sample
  true without a temperature is 1.

  Returns:
    Fields of `RowSettings`.

  Raises:
    UserError: there is no such file, it cannot be read, or it asks for
      something that is not computed here.
  """
  path = folder / FILE
  if not path.exists():
    raise UserError(
      f"{path}: --generation_config=auto needs this file; leave the flag out."
    )
  given = read_generation_config(folder)
  for name, neutral in _NOT_COMPUTED.items():
    if given.get(name) not in neutral:
      raise UserError(
        f"{path}: {name} should be {neutral[-1]!r}, got {given[name]!r}, which"
        " is not computed here; leave --generation_config out, and give"
        " --temperature and the like."
      )
  found = {n: given[n] for n in _READ if given.get(n) is not None}
  if found.get("top_k") == -1:  # As some write "all".
    found["top_k"] = 0
  for name in ("temperature", "top_p", "min_p"):
    value = found.get(name, 0)
    if type(value) not in (int, float) or not math.isfinite(value):
      raise UserError(f"{path}: {name} should be a number, got {value!r}.")
  sample = given.get("do_sample")
  if sample not in (None, True, False):
    raise UserError(
      f"{path}: do_sample should be true or false, got {sample!r}."
    )
  if sample is False:
    found["temperature"] = 0.0
  elif sample:
    found.setdefault("temperature", 1.0)
  return found
