"""Small tokenizer folders with the features of real ones."""

import base64
import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
LLAMA_DECODER = (
  decoders.Replace("▁", " "),
  decoders.ByteFallback(),
  decoders.Fuse(),
  decoders.Strip(" ", 1, 0),
)


def byte_level(folder: Path, single: str = "<s> $A </s>") -> None:
  """tokenizer.json of bytes; spaces are cut off its offsets, as in Llama 3."""
  pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġc", "at"]
  vocab = {piece: i for i, piece in enumerate(pieces)}
  made = tokenizers.Tokenizer(
    models.BPE(vocab=vocab, merges=[("Ġ", "c"), ("a", "t")])
  )
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  template = processors.TemplateProcessing(
    single=single, special_tokens=[("<s>", 1), ("</s>", 2)]
  )
  made.post_processor = processors.Sequence(
    [processors.ByteLevel(trim_offsets=True), template]
  )
  _save(folder, made)


def metaspace(folder: Path) -> None:
  """tokenizer.json with a mark before words and bytes for what is unknown."""
  pieces = [*SPECIAL, *(f"<0x{i:02X}>" for i in range(256))]
  pieces += ["▁", "Y", "e", "s", "n", "o", "▁n", "▁no", "▁Y", "é", "a", "b"]
  made = tokenizers.Tokenizer(
    models.BPE(
      vocab={piece: i for i, piece in enumerate(pieces)},
      merges=[("▁", "n"), ("▁n", "o"), ("▁", "Y")],
      unk_token="<unk>",
      byte_fallback=True,
    )
  )
  made.pre_tokenizer = pre_tokenizers.Metaspace(
    prepend_scheme="first", split=False
  )
  made.decoder = decoders.Sequence(list(LLAMA_DECODER))
  made.post_processor = processors.TemplateProcessing(
    single="<s> $A", special_tokens=[("<s>", 1)]
  )
  _save(folder, made)


def word_piece(folder: Path) -> None:
  """tokenizer.json whose decoder joins words and takes spaces out again."""
  pieces = [*SPECIAL, *"do n ' t ##ing . yes , ##s i m ? a b c".split()]
  made = tokenizers.Tokenizer(
    models.WordPiece(
      vocab={piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"
    )
  )
  made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  made.decoder = decoders.WordPiece(cleanup=True)
  _save(folder, made)


def write_tekken(
  folder: Path,
  special: tuple[str, ...] | None = ("<unk>", "<s>", "</s>", "<mask>"),
  count: int = 8,
) -> None:
  """A tekken.json of single bytes and a few merges."""
  tokens = [bytes([i]) for i in range(256)] + [b" s", b"at", b" sat", b"ca"]
  data = {
    "config": {
      "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+",
      "num_vocab_tokens": len(tokens),
      "default_vocab_size": len(tokens) + count,
      "default_num_special_tokens": count,
      "version": "v7",
    },
    "vocab": [
      {
        "rank": i,
        "token_bytes": base64.b64encode(t).decode(),
        "token_str": None,
      }
      for i, t in enumerate(tokens)
    ],
  }
  if special is not None:
    data["special_tokens"] = [
      {"rank": i, "token_str": n, "is_control": True}
      for i, n in enumerate(special)
    ]
  (folder / "tekken.json").write_text(json.dumps(data))


def beside(folder: Path, **files: object) -> None:
  """Writes JSON files by their names without '.json'."""
  for name, content in files.items():
    (folder / f"{name}.json").write_text(json.dumps(content))


def _save(folder: Path, made: tokenizers.Tokenizer) -> None:
  made.add_special_tokens(
    [AddedToken(s, special=True, normalized=False) for s in SPECIAL]
  )
  made.save(str(folder / "tokenizer.json"))
