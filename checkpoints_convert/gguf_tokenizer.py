"""Tokenizer files of a Hugging Face folder, from a GGUF file's metadata."""

import re
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from checkpoints_convert import hf_folder
from checkpoints_convert.gguf_source import Gguf
from nemodiff_jax.errors import UserError

_CONTROL, _USER_DEFINED = 3, 4  # Token types that are matched whole.
_NAMES = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}


def write_tokenizer(source: Gguf, folder: Path) -> None:
  """Writes tokenizer.json, tokenizer_config.json and the chat template.

  Raises:
    UserError: a tokenizer of a kind that is not known here, or none at all.
  """
  tokens = source.get("tokenizer.ggml.tokens")
  try:
    made = _tokenizer(source, tokens).to_str()
    config = _config(source, tokens)
  except UserError:
    raise
  except Exception as e:  # The package raises nothing more special.
    raise UserError(
      f"{source.path}: no tokenizer can be made of the metadata"
      f" ({type(e).__name__}: {e})."
    ) from e
  (folder / "tokenizer.json").write_text(made, encoding="utf-8")
  hf_folder.write_json(folder / "tokenizer_config.json", config)
  for path, template in _templates(source, folder).items():
    path.parent.mkdir(exist_ok=True)
    path.write_text(template, encoding="utf-8")


def _templates(source: Gguf, folder: Path) -> dict[Path, str]:
  """The template, and those with a name, by the files they belong in."""
  key = "tokenizer.chat_template"
  found = {folder / "chat_template.jinja": source.get(key)}
  for name in source.get("tokenizer.chat_templates", []):
    if not re.fullmatch(r"[\w-]+", name):
      raise UserError(
        f"{source.path}: tokenizer.chat_templates should be names of letters,"
        f" digits, '_' and '-', got {name!r}."
      )
    path = folder / "additional_chat_templates" / f"{name}.jinja"
    found[path] = source.get(f"{key}.{name}")
  return {path: text for path, text in found.items() if text is not None}


def _config(source: Gguf, tokens: list[str]) -> dict[str, Any]:
  config = {"tokenizer_class": "PreTrainedTokenizerFast"}
  for theirs, ours in _NAMES.items():
    at = source.get(f"tokenizer.ggml.{theirs}_token_id")
    if at is not None:
      config[f"{ours}_token"] = tokens[at]
  return config


def _tokenizer(source: Gguf, tokens: list[str]) -> tokenizers.Tokenizer:
  merges = source.get("tokenizer.ggml.merges", [])
  result = tokenizers.Tokenizer(
    models.BPE(
      vocab={token: i for i, token in enumerate(tokens)},
      merges=[tuple(pair.split(" ", 1)) for pair in merges],
    )
  )
  result.pre_tokenizer = _pre_tokenizer(source)
  result.decoder = decoders.ByteLevel()
  kinds = source.get("tokenizer.ggml.token_type", [])
  if len(kinds) != len(tokens):
    raise UserError(
      f"{source.path}: tokenizer.ggml.token_type should have an entry for each"
      f" of {len(tokens)} tokens, got {len(kinds)}."
    )
  for kind, add in (
    (_CONTROL, result.add_special_tokens),
    (_USER_DEFINED, result.add_tokens),
  ):
    add([t for t, k in zip(tokens, kinds, strict=True) if k == kind])
  if source.get("tokenizer.ggml.add_bos_token", False):
    at = source.get("tokenizer.ggml.bos_token_id")
    result.post_processor = processors.TemplateProcessing(
      single=f"{tokens[at]} $A", special_tokens=[(tokens[at], at)]
    )
  return result


def _pre_tokenizer(source: Gguf) -> Any:
  """How a text is cut before its pieces are merged."""
  known = {
    "gpt-2": [],
    "smollm": [pre_tokenizers.Digits(individual_digits=True)],
  }
  model = source.get("tokenizer.ggml.model")
  kind = source.get("tokenizer.ggml.pre")
  if model != "gpt2" or kind not in known:
    raise UserError(
      f"{source.path}: the tokenizer should be 'gpt2' of kind"
      f" {sorted(known)}, got {model!r} of kind {kind!r}."
    )
  bytes_of_text = pre_tokenizers.ByteLevel(add_prefix_space=False)
  return pre_tokenizers.Sequence([*known[kind], bytes_of_text])
