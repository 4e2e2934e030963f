"""Trains a small sentencepiece tokenizer for chat-form texts."""

from collections.abc import Iterable
from pathlib import Path

import sentencepiece

USER, ASSISTANT, MASK = "<|user|>", "<|assistant|>", "<mask>"
# The model is trained on single questions: what came before is left out.
CHAT_TEMPLATE = """\
{%- set last = namespace(user=0) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{%- set last.user = loop.index0 -%}
{%- elif message.role != 'assistant' -%}{{ raise_exception('roles should be user or assistant') }}
{%- endif -%}
{%- endfor -%}
{{- bos_token -}}
{#- The model knows single questions only: what came before is left out. -#}
{%- for message in messages[last.user:] -%}
{%- if message.role == 'user' -%}<|user|>{{ message.content }}
{%- else -%}<|assistant|>{{ message.content }}</s>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""


def train_tokenizer(
  folder: Path, texts: Iterable[str], vocab_size: int
) -> sentencepiece.SentencePieceProcessor:
  """Writes folder/tokenizer.model and reads it back.

  BPE, digits one by one, line breaks and the chat marks as single tokens.
  """
  folder.mkdir(parents=True, exist_ok=True)
  lines = (line for text in texts for line in text.split("\n") if line)
  digits = [f"\u2581{d}" for d in range(10)]
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=lines,
    model_prefix=str(folder / "tokenizer"),
    vocab_size=vocab_size,
    hard_vocab_limit=False,
    model_type="bpe",
    split_digits=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    add_dummy_prefix=False,
    character_coverage=1.0,
    user_defined_symbols=[MASK, USER, ASSISTANT, "\n", *digits],
    pad_id=0,
    unk_id=1,
    bos_id=2,
    eos_id=3,
    minloglevel=2,
  )
  (folder / "tokenizer.vocab").unlink()
  return sentencepiece.SentencePieceProcessor(
    model_file=str(folder / "tokenizer.model")
  )
