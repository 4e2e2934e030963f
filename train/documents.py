"""Records of a source -> tokens, and which of them are learned."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nemodiff_jax.errors import UserError
from nemodiff_jax.text.chat import ChatTemplate, check_messages, encode_chat
from nemodiff_jax.text.tokenizer import Tokenizer

Document = dict[str, np.ndarray]


def encode_record(
  record: dict[str, Any],
  tokenizer: Tokenizer | None,
  template: ChatTemplate | None,
  eos_ids: Sequence[int],
) -> Document:
  """Ids of {'text'}, {'messages'} or {'ids'}.

  Returns:
    tokens [n] int32, and supervised [n] bool: everything in a text, and the
    assistant's turns of a conversation, each with its EOS.

  Raises:
    UserError: a record that cannot be used.
  """
  if "error" in record:
    raise UserError(record["error"])
  if "ids" in record:
    return _document([(record["ids"], True)])
  if tokenizer is None:
    raise UserError("text needs a tokenizer, which the checkpoint lacks")
  if "messages" in record:
    return _conversation(record["messages"], tokenizer, template, eos_ids)
  text = record.get("text")
  if not isinstance(text, str) or not text:
    raise UserError(
      "expected 'text' (a text that is not empty) or 'messages', found"
      f" {sorted(set(record) - {'where'})}"
    )
  return _document([([*tokenizer.encode(text), eos_ids[0]], True)])


def _conversation(
  messages: Any,
  tokenizer: Tokenizer,
  template: ChatTemplate | None,
  eos_ids: Sequence[int],
) -> Document:
  """A conversation; a turn is learned if decoding would meet its prompt.

  That is, where the prompt rendered before the turn is how the conversation
  begins: templates that rewrite earlier turns leave only the last one.
  """
  check_messages(messages)
  if template is None:
    raise UserError("messages need a chat template, which the checkpoint lacks")
  whole = template.render(messages, generation=False)
  parts: list[tuple[Sequence[int], bool]] = []
  at = 0
  for i, message in enumerate(messages):
    if message["role"] != "assistant" or i == 0:
      continue
    prompt = template.render(messages[:i])
    turn = template.render(messages[: i + 1], generation=False)
    if not (whole.startswith(turn) and turn.startswith(prompt)):
      continue
    if not parts:  # As decoding encodes it, BOS and all.
      parts.append((encode_chat(template, tokenizer, messages[:i]), False))
    else:
      parts.append((_plain(tokenizer, whole[at : len(prompt)]), False))
    eos = template.tokens.get("eos_token") or whole
    answer, _, tail = turn[len(prompt) :].partition(eos)
    ids = _plain(tokenizer, answer)
    end = next((n for n, t in enumerate(ids) if t in eos_ids), len(ids))
    parts.append(([*ids[:end], eos_ids[0]], True))
    parts.append((ids[end + 1 :] + _plain(tokenizer, tail), False))
    at = len(turn)
  if not parts:
    raise UserError(
      "expected an assistant's turn that follows the prompt before it, in a"
      " conversation"
    )
  return _document(parts)


def _plain(tokenizer: Tokenizer, text: str) -> list[int]:
  """Ids of a text in the middle of another, without BOS."""
  if not text:
    return []
  ids, opening = list(tokenizer.encode(text)), list(tokenizer.encode(""))
  return ids[len(opening) :] if ids[: len(opening)] == opening else ids


def _document(parts: Sequence[tuple[Sequence[int], bool]]) -> Document:
  return {
    "tokens": np.concatenate([np.asarray(ids, np.int32) for ids, _ in parts]),
    "supervised": np.concatenate(
      [np.full(len(ids), learned) for ids, learned in parts]
    ),
  }
