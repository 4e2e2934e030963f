"""Makes tokenizers.json: ids of texts by transformers and mistral-common.

    PYTHONPATH=. python tests/golden/make_tokenizers.py

Needs transformers and mistral-common. Texts go in as a template renders them
(control tokens by name, nothing added) and as a person types them.
"""

import json
import random
import tempfile
from pathlib import Path

from tests.text import folders


def _token(content: str, **flags: bool) -> dict:
  own = ("lstrip", "rstrip", "single_word", "normalized", "special")
  return {"content": content} | {f: flags.get(f, False) for f in own}


BESIDE = {
  "nothing": {},
  "names": {
    "tokenizer_config": {
      "bos_token": "<s>",
      "eos_token": {"content": "<|eot|>", "__type": "AddedToken"},
      "pad_token": "[PAD]",
      "image_token": "<image>",
      "extra_special_tokens": ["<|ext|>"],
    }
  },
  "added_tokens_decoder": {
    "tokenizer_config": {
      "eos_token": "<|im_end|>",
      "pad_token": "<pad>",
      "added_tokens_decoder": {
        "4": _token("<|im_end|>", special=True, rstrip=True),
        "900": _token("<think>"),
        "901": _token("<|mask|>", special=True, lstrip=True),
        "902": _token("cat", single_word=True, normalized=True),
        "903": _token("<pad>"),
      },
    },
    "special_tokens_map": {"bos_token": "<not read>"},
  },
  "older files": {
    "added_tokens": {"<think>": 900, "<|mask|>": 901},
    "special_tokens_map": {
      "eos_token": "</s>",
      "mask_token": _token("<|mask|>", lstrip=True) | {"special": True},
      "additional_special_tokens": ["<|ext|>"],
    },
    "tokenizer_config": {"eos_token": "<|im_end|>"},
  },
}
KINDS = {
  "byte_level": folders.byte_level,
  "metaspace": folders.metaspace,
  "tekken": folders.write_tekken,
  "tekken of old": lambda folder: folders.write_tekken(folder, None, 30),
}
PIECES = (
  "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot|>", "[PAD]", "<image>",
  "<|ext|>", "<think>", "<|mask|>", "cat", " cat", "cats", "Yes", " no", " ",
  "<pad>", "\n", "é", "東", "🙂", "[INST]", "<unk>", " sat", "3",
)  # fmt: skip


def texts() -> list[str]:
  """What is encoded."""
  draw = random.Random(0)
  return ["".join(draw.choices(PIECES, k=1 + i % 7)) for i in range(40)]


def main() -> None:
  import mistral_common
  import transformers
  from mistral_common.tokens.tokenizers.tekken import Tekkenizer

  rows = []
  for kind, write in KINDS.items():
    for beside, files in BESIDE.items():
      with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        if kind.startswith("tekken"):
          if beside != "nothing":
            continue  # It reads no file beside it.
          tekken = Tekkenizer.from_file(folder / "tekken.json")
          typed = [tekken.encode(t, bos=True, eos=False) for t in texts()]
          names = [tekken.id_to_piece(i) for i in range(8)]
          rows.append([kind, beside, None, typed, names])
          continue
        folders.beside(folder, **files)
        made = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        rendered = made(texts(), add_special_tokens=False)["input_ids"]
        typed = made(texts(), split_special_tokens=True)["input_ids"]
        rows.append([kind, beside, rendered, typed, made.special_tokens_map])
  content = {
    "made": f"transformers {transformers.__version__}, mistral-common"
    f" {mistral_common.__version__}",
    "rows": rows,
  }
  path = Path(__file__).with_name("tokenizers.json")
  path.write_text(json.dumps(content, ensure_ascii=False) + "\n")


if __name__ == "__main__":
  main()
