"""The file of a job: one writer, nothing rewritten that need not be."""

import fcntl
import os
import stat
import subprocess
import sys
import time

import pytest

from nemodiff_jax.cli import jobs, results
from nemodiff_jax.errors import UserError
from tests.cli.conftest import read, write

BAD = {"id": "bad", "prompt_ids": [700]}
GOOD = {"id": "good", "prompt_ids": [7]}


@pytest.fixture
def serve(run, tmp_path):
  """Runs a job over lines; returns (exit code, standard error)."""

  def call(lines, out, *flags):
    path = tmp_path / "in.jsonl"
    write(path, lines)
    code, _, err = run(
      f"--prompts_file={path}",
      f"--output={out}",
      "--max_new_tokens=2",
      "--mode=ar",
      *flags,
    )
    return code, err

  return call


def test_a_second_job_on_an_output_is_refused(folder, job, serve, tmp_path):
  """While the first runs, by any name of the file; not when it was killed."""
  out, pipe = tmp_path / "out.jsonl", tmp_path / "pipe"
  os.mkfifo(pipe)
  link = tmp_path / "link.jsonl"
  first = subprocess.Popen(
    [
      sys.executable, "-m", "nemodiff_jax.cli.generate", "--batch_size=1",
      f"--checkpoint={folder}", f"--prompts_file={job}", f"--output={out}",
      "--max_new_tokens=400", "--mode=ar",
    ],
    stderr=subprocess.DEVNULL,
  )  # fmt: skip
  try:
    while not (out.exists() and out.stat().st_size):
      assert first.poll() is None
      time.sleep(0.01)
    os.kill(first.pid, 19)  # SIGSTOP: it runs, and does not end meanwhile.
    before = out.read_bytes()
    link.symlink_to(out)
    for name in (out, link):
      (tmp_path / "link.jsonl.settings.json").write_text("{}")
      code, err = serve([GOOD], name)
      assert code == 2 and "is being written by another job" in err
    assert out.read_bytes() == before
  finally:
    first.kill()
    first.wait()
  code, err = serve([GOOD], out)
  assert code == 2 and "was made with other settings" in err  # No lock now.


def test_a_lock_on_the_settings_is_respected(serve, tmp_path):
  out = tmp_path / "out.jsonl"
  assert serve([GOOD], out)[0] == 0
  with open(f"{out}.settings.json") as settings:
    fcntl.flock(settings, fcntl.LOCK_EX)
    code, err = serve([GOOD], out)
    assert code == 2 and "another job; wait for its end" in err
  assert serve([GOOD], out)[0] == 0


def test_without_locks_a_job_runs_and_says_so(serve, tmp_path, monkeypatch):
  def no_locks(*_):
    raise OSError(38, "Function not implemented")

  monkeypatch.setattr(fcntl, "flock", no_locks)
  code, err = serve([GOOD], tmp_path / "out.jsonl")
  assert code == 0 and "cannot be locked (Function not implemented)" in err


def test_going_on_keeps_links_modes_and_the_file_itself(serve, tmp_path):
  real, out = tmp_path / "real.jsonl", tmp_path / "out.jsonl"
  real.touch(mode=0o640)
  out.symlink_to(real)
  os.link(real, tmp_path / "hard.jsonl")
  serve([GOOD, GOOD | {"id": 2}], out)
  whole, inode = real.read_bytes(), real.stat().st_ino
  real.write_bytes(whole[:-9])
  assert serve([GOOD, GOOD | {"id": 2}], out)[0] == 0
  assert out.is_symlink() and real.read_bytes() == whole
  assert real.stat().st_ino == inode and real.stat().st_nlink == 2
  assert stat.S_IMODE(real.stat().st_mode) == 0o640


def test_a_job_that_is_done_does_not_touch_its_file(serve, tmp_path):
  out = tmp_path / "out.jsonl"
  lines = [BAD, GOOD, GOOD, "{"]
  code, err = serve(lines, out)
  assert code == 3 and "3 of 4 lines could not be served" in err
  kinds = [x.get("error", {}).get("type") for x in read(out)]
  assert kinds == ["bad_ids", None, "repeated_id", "bad_json"]
  before, seen = out.read_bytes(), out.stat().st_mtime_ns
  for _ in range(2):
    code, err = serve(lines, out)
    assert code == 3 and "3 of 3 lines could not be served" in err
    assert "1 done before, 0 to do" in err
    assert out.read_bytes() == before and out.stat().st_mtime_ns == seen


def test_a_mended_line_is_tried_again_behind_links_and_modes(serve, tmp_path):
  """Only then is the file written anew: the old error must go."""
  real, out = tmp_path / "real.jsonl", tmp_path / "out.jsonl"
  real.touch(mode=0o604)
  out.symlink_to(real)
  other = {"id": "other", "prompt_ids": []}
  assert serve([BAD, GOOD, other], out)[0] == 3
  kept = out.read_text().splitlines()[1:]
  assert serve([BAD | {"prompt_ids": [70]}, GOOD, other], out)[0] == 3
  lines = out.read_text().splitlines()
  assert lines[:2] == kept and len(lines) == 3 and '"bad"' in lines[2]
  assert out.is_symlink() and stat.S_IMODE(real.stat().st_mode) == 0o604
  assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
  "tail", [b'{"id": "x", "te', b"\x00" * 40, b"{", b"\xff"]
)
def test_a_torn_tail_is_cut_off(serve, tmp_path, tail):
  out = tmp_path / "out.jsonl"
  serve([GOOD], out)
  whole = out.read_bytes()
  out.write_bytes(whole + tail)
  assert serve([GOOD], out)[0] == 0 and out.read_bytes() == whole
  out.write_bytes(tail)  # Nothing else is there.
  assert serve([GOOD], out)[0] == 0 and out.read_bytes() == whole


def test_lines_stand_in_the_order_of_the_input(serve, tmp_path):
  out = tmp_path / "out.jsonl"
  lines = [GOOD, BAD, GOOD | {"id": 2}, "nothing", GOOD | {"id": 3}]
  assert serve(lines, out, "--batch_size=2", "--keep_order")[0] == 3
  assert [x["id"] for x in read(out)] == ["good", "bad", 2, None, 3]


def test_a_device_gets_no_settings_beside_it(serve, tmp_path):
  link = tmp_path / "null"
  link.symlink_to("/dev/null")
  assert serve([GOOD], link)[0] == 0
  full = tmp_path / "full"
  full.symlink_to("/dev/full")
  code, err = serve([GOOD], full)
  assert code == 2 and "No space left" in err
  assert {p.name for p in tmp_path.iterdir()} == {"null", "full", "in.jsonl"}


def test_an_output_that_cannot_be_opened_leaves_nothing(serve, tmp_path):
  code, err = serve([GOOD], tmp_path)
  assert code == 2 and "cannot be written: Is a directory" in err
  assert not tmp_path.with_name(tmp_path.name + ".settings.json").exists()


@pytest.mark.parametrize("flag", ["--chat", "--enable_thinking", "--stop=w7"])
def test_what_templates_see_is_part_of_the_settings(serve, tmp_path, flag):
  out = tmp_path / "out.jsonl"
  serve([GOOD], out)
  code, err = serve([GOOD], out, flag)
  assert code == 2 and "was made with other settings" in err
  assert flag.strip("-").split("=")[0] in err


def test_results_are_lines_to_every_reader(run, tmp_path):
  """U+2028 ends a line for Python's splitlines, and for JavaScript of old."""
  path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  write(path, [{"id": "a\u2028b\x85\u2029", "prompt_ids": [7]}])
  run(f"--prompts_file={path}", f"--output={out}", "--max_new_tokens=2")
  assert len(out.read_text().splitlines()) == 1
  assert read(out)[0]["id"] == "a\u2028b\x85\u2029"


def test_an_error_is_no_book(tmp_path):
  out = tmp_path / "out.jsonl"
  writer = results.Writer(str(out), {}, sys.stdout)
  for size in (500, 501):
    writer.refusal(jobs.Refused(1, "a", UserError("x" * size)))
  short, long = (x["error"]["message"] for x in read(out))
  assert short == "x" * 500 and long == "x" * 500 + "..."
