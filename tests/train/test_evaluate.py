"""Held-out questions: where they come from, and when a reply is right."""

import pytest

from nemodiff_jax.errors import UserError
from train import demo, evaluate
from train.configs import tiny


def config_of(source):
  config = tiny.get_config().eval
  config.update({"source": str(source), "questions": 2})
  return config


def test_questions_come_from_lines_or_arithmetic(tmp_path):
  path = tmp_path / "questions.jsonl"
  path.write_text(
    '{"prompt": "2 + 3 =", "answer": 5}\n'
    '{"messages": [{"role": "user", "content": "hi"}], "answer": "yes"}\n'
    '{"prompt": "one too many", "answer": 1}\n'
  )
  first, second = evaluate.load_questions(config_of(path))
  assert (first.prompt, first.answer) == ("2 + 3 =", "5")
  assert second.prompt[0]["content"] == "hi"
  assert len(evaluate.load_questions(config_of("arithmetic"))) == 6


@pytest.mark.parametrize(
  "text, why",
  [
    (None, "config.eval.source: .* cannot be read"),
    ('{"prompt": "2"}', ":1: expected JSON with messages .* and answer"),
    ("[]", ":1: expected JSON"),
    ("{", ":1: expected JSON"),
  ],
)
def test_questions_that_cannot_be_used_are_named(tmp_path, text, why):
  path = tmp_path / "questions.jsonl"
  if text is not None:
    path.write_text(text + "\n")
  with pytest.raises(UserError, match=why):
    evaluate.load_questions(config_of(path))


@pytest.mark.parametrize(
  "text, right",
  [
    ("so it is 15", True),
    ("15.\n", True),
    ("115", False),
    ("-15", False),
    ("0:15", False),
    ("15 legs", False),
  ],
)
def test_a_reply_is_right_if_it_ends_with_the_answer(text, right):
  assert evaluate.ends_with(text, "15") == right


@pytest.mark.slow
def test_the_demo_goes_through_all_stages(tmp_path, ordinary, capsys):
  found = demo.run(tmp_path, tmp_path / "model", speed=100)
  assert len(found) == 3
  said = capsys.readouterr().out
  assert all(f"| {stage} |" in said for stage in demo.STEPS)
  assert (tmp_path / "model" / "config.json").exists()
