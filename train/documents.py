"""Records of a source -> tokens, and which of them are learned."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nemodiff_jax.errors import UserError
from nemodiff_jax.text.messages import check_messages
from nemodiff_jax.text.template import ChatTemplate
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
  """The rendered conversation, with its learned turns marked.

  A turn is learned if decoding would meet its prompt, that is, where the
  prompt rendered before it is how the conversation begins: templates that
  rewrite earlier turns leave only the last one. It is learned up to the first
  id that ends a text; a conversation whose last turn has none gets one.
  """
  check_messages(messages)
  if template is None:
    raise UserError("messages need a chat template, which the checkpoint lacks")
  whole = template.render(messages, generation=False)
  ids, offsets = tokenizer.encode_rendered_offsets(whole)
  learned = np.zeros(len(ids), bool)
  open_end = False
  for i, message in enumerate(messages):
    if message["role"] != "assistant" or i == 0:
      continue
    prompt = template.render(messages[:i])
    turn = template.render(messages[: i + 1], generation=False)
    if not (whole.startswith(turn) and turn.startswith(prompt)):
      continue
    own = [
      n
      for n, (start, _) in enumerate(offsets)
      if len(prompt) <= start < len(turn)
    ]
    end = next((n for n in own if ids[n] in eos_ids), None)
    learned[own if end is None else range(own[0], end + 1)] = True
    open_end = end is None and len(turn) == len(whole) and bool(own)
  if not learned.any():
    raise UserError(
      "expected an assistant's turn that follows the prompt before it, in a"
      " conversation"
    )
  parts: list[Any] = [(ids, learned)]
  return _document(parts + [([eos_ids[0]], True)] * open_end)


def _document(parts: Sequence[tuple[Sequence[int], Any]]) -> Document:
  """Joins (ids, whether they are learned: of each, or of all)."""
  wide = lambda ids, learned: np.broadcast_to(learned, len(ids))
  return {
    "tokens": np.concatenate([np.asarray(ids, np.int32) for ids, _ in parts]),
    "supervised": np.concatenate([wide(*part) for part in parts]),
  }
