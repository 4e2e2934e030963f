"""--generation_config=auto: after flags and lines, before the defaults."""

import json
import shutil

import pytest

from tests.cli.conftest import read, write

SUGGESTED = {"temperature": 0.9, "top_k": 3, "top_p": 0.8, "max_new_tokens": 4}


@pytest.fixture
def suggesting(folder, tmp_path):
  """The tiny checkpoint with a generation_config.json."""
  copy = tmp_path / "suggesting"
  shutil.copytree(folder, copy)
  (copy / "generation_config.json").write_text(json.dumps(SUGGESTED))
  return copy


def texts(run, folder, *flags):
  code, out, err = run(
    "--prompt=w9 w8 w7", "--seed=3", *flags, checkpoint=folder
  )
  assert code == 0, err
  return out


def test_the_file_counts_only_when_asked(run, suggesting):
  as_flags = [f"--{name}={value}" for name, value in SUGGESTED.items()]
  want = texts(run, suggesting, *as_flags)
  assert texts(run, suggesting, "--generation_config=auto") == want
  plain = texts(run, suggesting)
  assert plain != want
  assert texts(run, suggesting, "--generation_config=none") == plain


def test_a_flag_wins_even_with_its_default_value(run, suggesting):
  auto = "--generation_config=auto"
  greedy = texts(run, suggesting, "--max_new_tokens=128")
  flags = ("--temperature=0", "--max_new_tokens=128")
  assert texts(run, suggesting, auto, *flags) == greedy


def test_a_line_wins_over_both(run, suggesting, tmp_path):
  job, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  prompt = {"prompt": "w9 w8 w7", "seed": 3}
  write(
    job,
    [
      {"id": "file", **prompt},
      {"id": "line", **prompt, "temperature": 0, "max_new_tokens": 7},
    ],
  )
  flags = ("--generation_config=auto", "--top_k=0", f"--output={out}")
  code, _, err = run(f"--prompts_file={job}", *flags, checkpoint=suggesting)
  assert code == 0, err
  by_id = {line["id"]: line for line in read(out)}
  assert by_id["file"]["completion_tokens"] == 4
  assert by_id["line"]["completion_tokens"] == 7
  record = json.loads((tmp_path / "out.jsonl.settings.json").read_text())
  assert (record["temperature"], record["top_k"]) == (0.9, 0)
  greedy = texts(run, suggesting, "--max_new_tokens=7")
  assert by_id["line"]["text"] == greedy.rstrip("\n")


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"top_k": 2.5}, "generation_config.json: top_k should be a whole number"),
    ({"top_p": 1.5}, r"generation_config.json: top_p should lie in \(0, 1\]"),
    ({"repetition_penalty": 1.1}, "repetition_penalty should be 1, got 1.1"),
    (None, "--generation_config=auto needs this file"),
  ],
)
def test_a_file_that_cannot_be_followed(run, suggesting, given, message):
  path = suggesting / "generation_config.json"
  path.unlink()
  if given is not None:
    path.write_text(json.dumps(given))
  flags = ("--prompt=w9", "--generation_config=auto")
  code, _, err = run(*flags, checkpoint=suggesting)
  assert code == 2 and message.replace("\\", "") in err
  assert run("--prompt=w9", "--max_new_tokens=1", checkpoint=suggesting)[0] == 0
