"""What flags mean: good values, defaults, help, standard input, progress."""

import io
import json
import subprocess
import sys
import time

import pytest
from absl import flags
from absl.testing import flagsaver

from nemodiff_jax import __version__
from nemodiff_jax.cli import flags as shared
from nemodiff_jax.cli import progress
from nemodiff_jax.decode.config import DecodeConfig, RowSettings, decode_config
from nemodiff_jax.io.checkpoint import open_checkpoint
from tests.cli.conftest import read, write


@pytest.fixture
def parse():
  """Parses flags for the time of a test."""
  with flagsaver.flagsaver():
    yield lambda *given: flags.FLAGS(["generate", *given])


@pytest.mark.parametrize(
  ("given", "threshold"),
  [
    ([], 0.9),
    (["--threshold=none"], None),
    (["--threshold=None"], None),
    (["--threshold=0.25"], 0.25),
    (["--threshold=1"], 1.0),
    (["--steps_per_block=4"], None),
    (["--steps_per_block=4", "--threshold=0.7"], 0.7),
    (["--steps_per_block=4", "--threshold=none"], None),
  ],
)
def test_threshold(parse, tiny, given, threshold):
  parse("--mode=diffusion", *given)
  assert shared.run_config(tiny.config).threshold == threshold


def test_run_config_holds_every_flag(parse, tiny):
  parse(
    "--mode=diffusion", "--block_length=5", "--threshold=0.5",
    "--steps_per_block=3", "--draft_threshold=0.25",
  )  # fmt: skip
  expected = DecodeConfig("diffusion", 5, 0.5, 3, 0.25)
  assert shared.run_config(tiny.config) == expected
  changed = shared.run_config(tiny.config, "linear_spec")
  assert (changed.mode, changed.block_length) == ("linear_spec", 5)


def test_row_settings_hold_every_flag(parse, folder):
  parse(
    "--max_new_tokens=3", "--temperature=0.5", "--top_k=4", "--top_p=0.75",
    "--min_p=0.125", "--seed=6", "--stop=a", "--stop=b", "--logprobs=7",
    "--max_thinking_tokens=8", "--end_think_token_id=9",
  )  # fmt: skip
  assert shared.row_settings(open_checkpoint(str(folder))) == RowSettings(
    max_new_tokens=3, temperature=0.5, top_k=4, top_p=0.75, min_p=0.125,
    seed=6, stop=["a", "b"], logprobs=7, max_thinking_tokens=8,
    end_think_token_id=9,
  )  # fmt: skip


def test_defaults_are_those_of_the_library(parse, folder, tiny):
  parse()
  row = shared.row_settings(open_checkpoint(str(folder)))
  assert row == RowSettings()
  config = shared.run_config(tiny.config)
  assert config == decode_config(tiny.config)
  assert (config.mode, config.block_length) == ("linear_spec", 8)
  assert config.widths == (1, 8)
  assert (shared.batch_size(), shared.max_length()) == (8, None)
  parse("--batch_size=1", "--max_length=1")  # The least there can be.
  assert (shared.batch_size(), shared.max_length()) == (1, 1)


ORDER = "--mode=ar", "--keep_order"  # The same lines in every run.


def test_a_line_takes_precedence_over_the_flags(run, tmp_path):
  path = tmp_path / "in.jsonl"
  hot = {"temperature": 0.9, "seed": 4, "max_new_tokens": 7}
  write(path, [{"prompt": "w9", **hot}, {"prompt": "w9"}])
  _, out, _ = run(f"--prompts_file={path}", "--max_new_tokens=3", *ORDER)
  own, flag = map(json.loads, out.splitlines())
  given = ["--temperature=0.9", "--seed=4", "--max_new_tokens=7", *ORDER]
  write(path, [{"prompt": "w9"}, {"prompt": "w9", "temperature": 0.0}])
  _, out, _ = run(f"--prompts_file={path}", *given)
  hot, cold = map(json.loads, out.splitlines())
  assert own["token_ids"] == hot["token_ids"] != cold["token_ids"]
  assert flag["token_ids"] == cold["token_ids"][:3]


def test_flags_may_be_written_with_dashes(run, job):
  how = "--nodebug", *ORDER
  plain = run(f"--prompts_file={job}", "--max_new_tokens=3", *how)
  dashed = run(f"--prompts-file={job}", "--max-new-tokens", "3", *how)
  assert dashed[:2] == plain[:2] and plain[0] == 0
  chat = f"--prompts-file={job}", "--nochat", "--noenable-thinking"
  assert run(*chat, "--max-new-tokens=3", *ORDER)[:2] == plain[:2]
  chat = f"--prompts-file={job}", "--no-chat", "--no-enable_thinking"
  assert run(*chat, "--max-new-tokens=3", *ORDER)[:2] == plain[:2]
  for given in ("--max-tokens=3", "--max_new_toads", "--no-max-tokens"):
    code, out, err = run(given)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "(nearest known flag: 'max_new_tokens'); --help lists" in err
  assert "unknown flag --zzz; --help" in run("--zzz=3")[2]


def test_chat_makes_a_prompt_a_message_but_not_ids(run, job, tmp_path):
  code, _, err = run("--prompt=w7", "--chat")
  assert code == 2 and "chat template" in err
  assert run(f"--prompts_file={job}", "--chat")[0] == 0


def test_standard_input(run, job, monkeypatch, capsys):
  _, expected, _ = run(f"--prompts_file={job}", *ORDER)
  stdin = io.TextIOWrapper(io.BytesIO(job.read_bytes()))
  monkeypatch.setattr(sys, "stdin", stdin)
  code, out, _ = run("--prompts_file=-", *ORDER)
  assert code == 0 and out == expected


def test_a_home_folder_is_found(run, job, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert run("--prompts_file=~/in.jsonl", "--output=~/out.jsonl")[0] == 0
  assert len(read(tmp_path / "out.jsonl")) == 5


def test_a_compressed_file_is_named(run, tmp_path):
  path = tmp_path / "in.jsonl.gz"
  path.write_bytes(b"\x1f\x8b\x08\x00")
  code, _, err = run(f"--prompts_file={path}")
  assert code == 2 and "in.jsonl.gz" in err and "found gzip; unpack" in err


@pytest.mark.parametrize("name", ["generate", "chat"])
def test_help_is_the_same_by_every_name_and_no_fault(name):
  """As a module, and as the installed command."""
  module = f"nemodiff_jax.cli.{name}"
  script = f"from {module} import console; console()"
  texts = []
  for how in (["-m", module, "--help"], ["-c", script, "-h"]):
    done = subprocess.run(
      [sys.executable, *how], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == ""
    texts.append([x for x in done.stdout.splitlines() if x[-1:] != ":"])
  assert texts[0] == texts[1]
  assert any(x.strip().startswith("--checkpoint:") for x in texts[0])
  assert any(f"python -m {module}" in x for x in texts[0])


def test_version(run):
  assert run("--version") == (0, f"nemodiff {__version__}\n", "")


def test_help_into_a_pipe_that_is_closed():
  command = f"{sys.executable} -m nemodiff_jax.cli.generate --help | head -1"
  done = subprocess.run(command, shell=True, capture_output=True, text=True)
  assert done.stdout == "Decodes one prompt, or a JSONL file of them.\n"
  assert done.stderr == ""


def test_a_summary_counts_the_whole_job(run, tmp_path):
  path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  lines = [{"prompt_ids": [7], "max_new_tokens": n} for n in (1, 4, 6)]
  write(path, [*lines, "nothing"])
  code, _, err = run(
    f"--prompts_file={path}", f"--output={out}", "--mode=linear_spec"
  )
  results = read(out)[:3]
  tokens = sum(x["completion_tokens"] for x in results)
  passes = sum(x["nfe"] for x in results)
  assert code == 3
  (summary,) = [x for x in err.splitlines() if "tok/s" in x]
  assert summary.startswith(f"3 prompts, {tokens} tokens in ")
  assert summary.endswith(f"{tokens / passes:.2f} tokens per forward, 1 errors")


def test_progress_without_a_terminal_is_a_line_each_interval(
  monkeypatch, capsys
):
  assert progress.INTERVAL == 30
  monkeypatch.setattr(progress, "INTERVAL", 0.02)
  with progress.Progress(4):
    shown = ""
    while shown.count("\n") < 2:
      time.sleep(0.01)
      shown += capsys.readouterr().err
  assert shown.startswith("0 prompts, 0 tokens in 0.")
  assert shown.splitlines()[0].endswith("; 4 in all") and "\r" not in shown
  capsys.readouterr()
  time.sleep(0.1)
  assert capsys.readouterr().err == ""  # No more of it.
