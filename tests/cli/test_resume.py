"""A stopped job goes on where it was."""

import pytest

from nemodiff_jax.serve.engine import Engine
from tests.cli.conftest import read, write


def test_stopped_job_goes_on(run, job, tmp_path):
  out = tmp_path / "out.jsonl"
  # Not in auto, whose nfe follows the clock.
  how = [f"--prompts_file={job}", f"--output={out}", "--batch_size=2"]
  how.append("--mode=linear_spec")
  run(*how)
  whole = out.read_text()
  lines = whole.splitlines(keepends=True)
  for left in (0, 2, 4):  # Stopped inside line `left`.
    out.write_text("".join(lines[:left]) + lines[left][:40])
    code, _, err = run(*how)
    assert code == 0 and out.read_text() == whole
    assert (f"{left} done before, {5 - left} to do" in err) == (left > 0)
  code, _, err = run(*how)
  assert code == 0 and out.read_text() == whole and "5 done" in err


def test_last_line_without_line_break_is_kept(run, job, tmp_path):
  out = tmp_path / "out.jsonl"
  how = [f"--prompts_file={job}", f"--output={out}"]
  run(*how)
  whole = out.read_text()
  out.write_text(whole.rstrip("\n"))
  assert run(*how)[0] == 0 and out.read_text() == whole


def test_lines_with_an_error_are_tried_again(run, tmp_path):
  path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  how = [f"--prompts_file={path}", f"--output={out}", "--max_new_tokens=2"]
  write(
    path, [{"id": "a", "prompt_ids": [700]}, {"id": "b", "prompt_ids": [7]}]
  )
  assert run(*how)[0] == 3 and len(read(out)) == 2
  write(path, [{"id": "a", "prompt_ids": [70]}, {"id": "b", "prompt_ids": [7]}])
  assert run(*how)[0] == 0
  assert [(x["id"], "error" in x) for x in read(out)] == [
    ("b", False),
    ("a", False),
  ]


@pytest.mark.parametrize(
  "flag",
  [
    "--mode=diffusion",
    "--temperature=0.1",
    "--seed=1",
    "--threshold=0.5",
    "--draft_threshold=0.5",
    "--lora=none",
    "--quantize=int8",
  ],
)
def test_other_settings_are_refused(run, job, tmp_path, flag):
  out = tmp_path / "out.jsonl"
  how = [f"--prompts_file={job}", f"--output={out}"]
  run(*how)
  before = out.read_text()
  code, _, err = run(*how, flag)
  assert code == 2 and "was made with other settings" in err
  assert flag.strip("-").split("=")[0] in err
  assert out.read_text() == before
  assert run(*how, "--batch_size=3")[0] == 0  # Does not decide results.


def test_an_output_of_something_else_is_left_alone(run, job, tmp_path):
  out = tmp_path / "out.jsonl"
  out.write_text("my notes\n")
  how = [f"--prompts_file={job}", f"--output={out}"]
  code, _, err = run(*how)
  assert code == 2 and "settings.json is not beside it" in err
  out.unlink()
  run(*how)
  out.write_text("my notes\n" + out.read_text())
  code, _, err = run(*how)
  assert code == 2 and "line 1 is no result of this command" in err
  assert out.read_text().startswith("my notes\n")


@pytest.mark.parametrize("order", ["--nokeep_order", "--keep_order"])
def test_results_reach_the_file_as_they_are_done(
  run, job, tmp_path, monkeypatch, order
):
  """What a fault in a later visit leaves behind is kept."""
  out = tmp_path / "out.jsonl"
  step, ended = Engine.step, []

  def fail_late(engine):
    if len(ended) >= 3:
      raise KeyboardInterrupt
    events = step(engine)
    ended.extend(e for e in events if e.ended)
    return events

  how = [f"--prompts_file={job}", f"--output={out}", "--batch_size=2", order]
  with monkeypatch.context() as patched:
    patched.setattr(Engine, "step", fail_late)
    code, _, err = run(*how)
  assert code == 130 and "interrupted" in err
  names = [f"p{i}" for i in range(5)]
  found = [x["id"] for x in read(out)]
  if order == "--keep_order":  # What is held back is decoded again.
    assert found == names[: len(found)] and found
  else:
    assert len(found) == len(ended)
  assert run(*how)[0] == 0
  assert sorted(x["id"] for x in read(out)) == names
