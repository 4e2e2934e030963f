"""Chat templates of checkpoint folders, and conversations as ids."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemodiff_jax.errors import UserError
from nemodiff_jax.text.messages import check_messages
from nemodiff_jax.text.special_tokens import CONFIG, read_json, read_named
from nemodiff_jax.text.template import ChatTemplate
from nemodiff_jax.text.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "check_messages", "encode_chat", "load_template"]

_FILE, TEMPLATES = "chat_template.jinja", "additional_chat_templates"
_OF_PROCESSORS = "chat_template.json"


def load_template(folder: Path) -> ChatTemplate | None:
  """The templates of a folder; None where it has none.

  chat_template.jinja and additional_chat_templates/*.jinja; else what
  tokenizer_config.json has; else chat_template.json.

  Raises:
    UserError: a file that is no JSON. Other faults are told of when a template
      is rendered.
  """
  holders = {
    p: read_json(p) for p in (folder / CONFIG, folder / _OF_PROCESSORS)
  }
  try:
    sources = _files(folder)
    for path, holder in holders.items():
      sources = sources or _held(path, holder)
    return ChatTemplate(sources, _names(folder)) if sources else None
  except UserError as e:
    return ChatTemplate({}, {}, broken=e)


def encode_chat(
  template: ChatTemplate | None,
  tokenizer: Tokenizer | None,
  messages: Sequence[Mapping[str, Any]],
  **variables: Any,
) -> list[int]:
  """Ids of a conversation that ends with the opening of a reply.

  They are those of the rendered text: a BOS is there if the template writes it.

  Raises:
    UserError: no template, no tokenizer, or what `render` refuses.
  """
  if template is None or tokenizer is None:
    raise UserError(
      "this checkpoint has no chat template and tokenizer"
      " (chat_template.jinja), so messages cannot be used; give a prompt."
    )
  return tokenizer.encode_rendered(template.render(messages, **variables))


def _files(folder: Path) -> dict[str, str]:
  files = {p.stem: p for p in sorted((folder / TEMPLATES).glob("*.jinja"))}
  if (folder / _FILE).exists():
    files["default"] = folder / _FILE
  sources = {}
  for name, path in files.items():
    try:
      sources[name] = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
      raise UserError(f"{path}: expected a text in UTF-8 ({e}).") from e
  return sources


def _held(path: Path, holder: Any) -> dict[str, str]:
  """Sources of chat_template in a JSON file: one, a list or an object."""
  if holder is not None and not isinstance(holder, dict):
    raise UserError(f"{path}: expected a JSON object, found {holder!r:.60}.")
  found = (holder or {}).get("chat_template")
  if isinstance(found, list) and all(isinstance(t, Mapping) for t in found):
    found = {t.get("name"): t.get("template") for t in found}
  if isinstance(found, str):
    found = {"default": found}
  if found is None:
    return {}
  if not isinstance(found, dict) or not all(
    isinstance(x, str) for pair in found.items() for x in pair
  ):
    raise UserError(
      f"{path}: chat_template should be a text or a list of objects with 'name'"
      f" and 'template', found {found!r:.60}."
    )
  return found


def _names(folder: Path) -> dict[str, str]:
  """Special tokens by name: those told, else those of the tokenizer's kind."""
  told = dict(read_named(folder).names)
  if (folder / "tokenizer.json").exists():
    return told
  if (folder / "tekken.json").exists():
    own = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return own | told
  model = folder / "tokenizer.model"
  return _pieces(model) | told if model.exists() else told


def _pieces(path: Path) -> dict[str, str]:
  import sentencepiece

  try:
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
  except RuntimeError as e:
    raise UserError(f"{path}: not a readable tokenizer ({e}).") from e
  ids = {
    "bos_token": model.bos_id(),
    "eos_token": model.eos_id(),
    "unk_token": model.unk_id(),
    "pad_token": model.pad_id(),
  }
  return {n: model.id_to_piece(i) for n, i in ids.items() if i >= 0}
