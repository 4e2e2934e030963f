"""Makes peft.json: where PEFT puts a LoRA, for many adapter_config.json.

    python -m tests.golden.make_peft

Needs torch, transformers and peft, which the tests themselves do not.
"""

import datetime
import json
from pathlib import Path
from typing import Any

SIZES = {
  "vocab_size": 32,
  "hidden_size": 16,
  "intermediate_size": 16,
  "num_hidden_layers": 4,
  "num_attention_heads": 2,
  "num_key_value_heads": 1,
  "head_dim": 8,
}
LIST = {"target_modules": ["o_proj"]}
CASES: list[dict[str, Any]] = [
  LIST,
  {"target_modules": ["self_attn.o_proj"]},
  {"target_modules": ".*o_proj"},
  {"target_modules": r".*\.self_attn\.o_proj"},
  {"target_modules": r"model\.layers\.\d+\.self_attn\.o_proj"},
  {"target_modules": r".*layers\.(0|2)\..*o_proj"},
  {"target_modules": r"(?!.*layers\.3).*(o_proj)"},
  {"target_modules": ["model.layers.1.self_attn.o_proj"]},
  {"target_modules": ["layers.0.self_attn.o_proj", "3.self_attn.o_proj"]},
  {"target_modules": ["model.layers.1.self_attn.o_proj", "o_proj"]},
  {"target_modules": ["o_proj", "vision_tower.proj"]},
  {"target_modules": ["o_proj", "q_proj"]},
  {"target_modules": ["q_proj"]},
  {"target_modules": ["proj"]},
  {"target_modules": [".o_proj"]},
  {"target_modules": "o_pro"},
  {"target_modules": ".*proj"},
  {"target_modules": ".*(o_proj|lm_head)"},
  {"target_modules": ["o_proj", "lm_head"]},
  {"target_modules": ["o_proj", "embed_tokens"]},
  {"target_modules": "all-linear"},
  {"target_modules": "All-Linear"},
  {"target_modules": "all-linear", "exclude_modules": ".*(q|k|v|gate|up|down)_proj"},
  {"target_modules": ["o_proj", "q_proj"], "exclude_modules": ["q_proj"]},
  LIST | {"exclude_modules": r".*layers\.1\..*"},
  LIST | {"exclude_modules": ["layers.2.self_attn.o_proj"]},
  LIST | {"exclude_modules": ["o_proj"]},
  LIST | {"exclude_modules": []},
  LIST | {"layers_to_transform": [0, 3]},
  LIST | {"layers_to_transform": 2},
  LIST | {"layers_to_transform": 0},
  LIST | {"layers_to_transform": []},
  LIST | {"layers_to_transform": [1], "layers_pattern": "layers"},
  LIST | {"layers_to_transform": [1], "layers_pattern": ["h", "layers"]},
  LIST | {"layers_to_transform": [1], "layers_pattern": "h"},
  LIST | {"layers_to_transform": [1], "layers_pattern": []},
  {
    "target_modules": ["model.layers.1.self_attn.o_proj", "o_proj"],
    "layers_to_transform": [3],
  },
  LIST | {"r": 4, "lora_alpha": 12},
  LIST | {"r": 4, "lora_alpha": 12, "use_rslora": True},
  LIST | {"fan_in_fan_out": True},
  LIST | {"lora_dropout": 0.5, "init_lora_weights": "gaussian"},
]  # fmt: skip


def main() -> None:
  import peft
  import torch
  import transformers

  rows = []
  for case in CASES:
    config = transformers.Ministral3Config(**SIZES, pad_token_id=0)
    model = transformers.Ministral3ForCausalLM(config)
    try:
      tuned = peft.get_peft_model(model, peft.LoraConfig(**case))
    except ValueError as e:
      rows.append({"config": case, "modules": None, "error": str(e)[:80]})
      continue
    found = {
      name.removeprefix("base_model.model."): module.scaling["default"]
      for name, module in tuned.named_modules()
      if hasattr(module, "lora_A") and hasattr(module, "scaling")
    }
    rows.append({"config": case, "modules": sorted(found),
                 "scale": next(iter(found.values()))})  # fmt: skip
  about = {
    "made": datetime.date.today().isoformat(),
    "peft": peft.__version__,
    "transformers": transformers.__version__,
    "torch": torch.__version__,
  }
  path = Path(__file__).with_name("peft.json")
  lines = ",\n".join(json.dumps(row) for row in rows)
  path.write_text(f'{{"about": {json.dumps(about)}, "cases": [\n{lines}\n]}}\n')
  print(path, len(rows), path.stat().st_size)


if __name__ == "__main__":
  main()
