"""The command with its actors in this process: no Ray."""

import errno
import os
import re
import sys
import types

import pytest

from nemodiff_jax.cli import batch
from nemodiff_jax.errors import UserError
from nemodiff_jax.fleet import cluster, folder, source
from nemodiff_jax.fleet.cluster import Placement, divide
from nemodiff_jax.fleet.worker import Job, Worker
from tests import helpers
from tests.fleet.conftest import QUICK, told, union, write


@pytest.mark.parametrize("size", [3, 50])
def test_rows_are_those_of_one_process(run, job, alone, tmp_path, size):
  code, err = run(f"--prompts_file={job}", f"--rows_per_part={size}", *QUICK)
  assert code == 3 and "4 of 20 lines could not be served" in err
  assert "4 errors" in err and "20 prompts" in err
  assert told(union(tmp_path / "out")) == told(alone)
  assert len(list((tmp_path / "out").glob("part-*"))) == -(-20 // size)


def test_a_stopped_job_goes_on(run, job, alone, tmp_path, monkeypatch):
  how = f"--prompts_file={job}", "--rows_per_part=4", *QUICK
  serve, served = Worker.serve, []

  def stop(worker, part):
    if len(served) == 2:
      raise KeyboardInterrupt
    served.append(part.number)
    return serve(worker, part)

  with monkeypatch.context() as patched:
    patched.setattr(Worker, "serve", stop)
    code, err = run(*how)
  assert code == 130 and "the same command goes on" in err
  code, err = run(*how)
  assert code == 3 and "2 parts done before, 3 to do" in err
  assert "4 of 20 lines could not be served" in err  # Those of before count.
  assert told(union(tmp_path / "out")) == told(alone)
  code, err = run(*how)
  assert code == 3 and "5 parts done before, 0 to do" in err


def test_the_folder_of_another_job_is_refused(run, job, tmp_path):
  how = f"--prompts_file={job}", "--rows_per_part=9", *QUICK
  assert run(*how)[0] == 3
  before = union(tmp_path / "out")
  for flag in (
    "--seed=1", "--rows_per_part=8", "--threshold=0.5", "--max_length=100",
    "--output_format=parquet",
  ):  # fmt: skip
    code, err = run(*how, flag)
    assert code == 2 and flag[2:].split("=")[0] in err
  other = write(tmp_path / "other.jsonl", [{"prompt_ids": [7]}])
  code, err = run(f"--prompts_file={other}", *how[1:])
  assert code == 2 and "made with other settings (prompts: " in err
  assert run(*how, "--batch_size=2")[0] == 3  # Does not decide results.
  assert union(tmp_path / "out") == before


@pytest.mark.slow
def test_lines_of_openai_are_answered_in_their_form(run, folder, tmp_path):
  pytest.importorskip("pydantic", reason="the server's packages read them")
  body = {"prompt": "w9", "max_tokens": 3, "n": 2, "ignore_eos": True}
  path = write(
    tmp_path / "in.jsonl",
    [{"prompt": "w5"}, {"custom_id": "a", "body": body}, {"custom_id": 5}],
  )
  how = f"--prompts_file={path}", *QUICK
  code, err = run(*how, "--output_format=parquet")
  assert code == 2 and "line 2 has the form of OpenAI's batch files" in err
  assert run(*how)[0] == 3
  own, answer, wrong = union(tmp_path / "out")
  assert own["id"] == 1 and answer["custom_id"] == "a"
  body = answer["response"]["body"]
  assert body["usage"]["completion_tokens"] == 6 and len(body["choices"]) == 2
  assert wrong["response"]["status_code"] == 400


@pytest.mark.slow
def test_rows_need_more_than_those_before(run, tiny, folder, tmp_path):
  """Longer ones, log-probabilities and stop ids: another engine, same rows."""
  from tests.fleet.conftest import one_process

  prompts = helpers.prompts_of(tiny.config, (3, 300, 5, 4, 6))
  more = [
    {}, {}, {"logprobs": 3}, {"stop_token_ids": list(range(20, 60))},
    {"logprobs": 0},
  ]  # fmt: skip
  lines = [{"prompt_ids": p, **m} for p, m in zip(prompts, more, strict=True)]
  path = write(tmp_path / "in.jsonl", lines)
  assert run(f"--prompts_file={path}", "--rows_per_part=1", *QUICK)[0] == 0
  rows = union(tmp_path / "out")
  wanted = one_process(folder, path, tmp_path, *QUICK)
  assert told(rows) == told(wanted)
  assert [len(r["logprobs"]["top_ids"][0]) for r in rows if "logprobs" in r] == [
    3, 0,
  ]  # fmt: skip


def test_a_model_that_cannot_be_read_ends_the_job(run, job, folder, tmp_path):
  bad = tmp_path / "bad"
  bad.mkdir()
  (bad / "config.json").write_bytes((folder / "config.json").read_bytes())
  code, err = run(f"--prompts_file={job}", checkpoint=bad)
  assert code == 2
  (line,) = [x for x in err.splitlines() if x.startswith("error: ")]
  assert "part 0 on " in line and str(bad) in line
  assert sorted(os.listdir(tmp_path / "out"))[-1] == "_manifest.json"


def test_a_part_that_processes_die_of_is_given_up(tmp_path, job, monkeypatch):
  """As Ray does, a process after the other; nothing of them but the file."""

  def die(*_):
    raise KeyboardInterrupt  # Ends a process, as far as a worker sees.

  monkeypatch.setattr("nemodiff_jax.fleet.decoding.open_decoding", die)
  (part,) = source.scan(str(job), 99).parts
  said = Job((), ".", str(tmp_path), "jsonl", False, False)
  for _ in range(5):
    with pytest.raises(KeyboardInterrupt):
      Worker(said).serve(part)
  assert "its process died 5 times" in Worker(said).serve(part).failure


@pytest.mark.slow
def test_a_full_disk_ends_the_job(run, job, alone, tmp_path, monkeypatch):
  how = f"--prompts_file={job}", "--rows_per_part=4", *QUICK
  replace, done = os.replace, []

  def fill(old, new):
    done.append(new)
    if len(done) == 3:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    replace(old, new)

  with monkeypatch.context() as patched:
    patched.setattr(folder.os, "replace", fill)
    code, err = run(*how)
  assert code == 2 and "part 2 on " in err and "No space left" in err
  assert "the same command goes on" in err
  assert run(*how)[0] == 3
  assert told(union(tmp_path / "out")) == told(alone)


def test_a_fault_in_an_actor_is_one_line(run, job, monkeypatch):
  def fault(*_):
    raise RuntimeError("two\nlines")

  monkeypatch.setattr("nemodiff_jax.fleet.source.read", fault)
  code, err = run(f"--prompts_file={job}", *QUICK)
  assert code == 2 and "RuntimeError in fault, line " in err
  assert "two lines" in err


def test_a_part_that_is_not_here_is_missed(run, job, monkeypatch):
  monkeypatch.setattr("nemodiff_jax.fleet.folder.write_part", lambda *_: None)
  code, err = run(f"--prompts_file={job}", *QUICK)
  assert code == 2 and "name a folder that all machines share" in err


def test_progress_says_how_long_the_rest_takes(run, job, monkeypatch):
  monkeypatch.setattr("nemodiff_jax.cli.progress.INTERVAL", 0.01)
  _, err = run(f"--prompts_file={job}", "--rows_per_part=4", *QUICK)
  left = re.findall(
    r"(\d+) prompts.* tok/s, (\d+:\d\d:\d\d) left; 20 in all", err
  )
  assert {int(count) for count, _ in left} <= {4, 8, 12, 16, 20}
  assert left and all(t == "0:00:00" for n, t in left if n == "20")


def test_no_ray_is_said(job, tmp_path, monkeypatch):
  monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
  monkeypatch.setitem(sys.modules, "ray", None)
  monkeypatch.setitem(sys.modules, "ray.data", None)
  code, _, err = helpers.run_command(
    batch.main, "batch", f"--prompts_file={job}", f"--output={tmp_path / 'o'}"
  )
  assert code == 2
  assert "needs the extra [ray]" in err and "pip install" in err
  assert not (tmp_path / "o").exists()
  assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"  # No telemetry.


@pytest.mark.parametrize(
  ("address", "error"),
  [
    (None, "Ray does not start on this machine (The node timed out.)"),
    ("auto", "ray_address 'auto': no cluster there (The node timed out.)"),
    ("127.0.0.1:1", "ray_address '127.0.0.1:1': no cluster there ("),
    ("here:99999999", "ray_address 'here:99999999': no cluster there ("),
  ],
)
def test_no_cluster_is_said(monkeypatch, address, error):
  def init(*_, **__):
    raise Exception("The node timed out.\nSome say why.")

  fake = types.ModuleType("ray")
  fake.init, fake.data = init, types.ModuleType("ray.data")
  monkeypatch.setitem(sys.modules, "ray", fake)
  monkeypatch.setitem(sys.modules, "ray.data", fake.data)
  with pytest.raises(UserError) as e, cluster.connected(address, False):
    pass
  assert str(e.value).startswith(error)


@pytest.mark.parametrize(
  ("flag", "error"),
  [
    ("--rows_per_part=0", "rows_per_part should be at least 1, got 0"),
    ("--actors=0", "actors should be at least 1, got 0"),
    ("--batch_size=0", "batch_size should be at least 1, got 0"),
    ("--temperature=-1", "temperature should be"),
    ("--prompts_file=none.jsonl", "'none.jsonl' cannot be read"),
    ("--output=", "output should name a folder, got ''"),
  ],
)
def test_bad_flags_are_refused(run, job, flag, error):
  code, err = run(f"--prompts_file={job}", flag)
  assert code == 2 and error in err


def test_flags_that_are_missing_are_named(here):
  code, _, err = helpers.run_command(batch.main, "batch", "--output=x")
  assert code == 2 and "expected --prompts_file and --output" in err


def test_an_empty_input_is_done_at_once(run, tmp_path):
  path = write(tmp_path / "in.jsonl", [])
  code, err = run(f"--prompts_file={path}")
  assert code == 0 and "0 prompts" in err
  assert os.listdir(tmp_path / "out") == ["_manifest.json"]


def test_actors_are_one_per_device():
  gpus, cpus = {"GPU": 4.0, "CPU": 32.0}, {"CPU": 8.0}
  head = {"CPU": 0.0}
  assert divide([gpus, gpus, head], None, 1, 99) == Placement(8, 0, 1)
  assert divide([gpus, gpus], None, 3, 99) == Placement(2, 0, 3)
  assert divide([gpus, gpus], None, 1, 3) == Placement(3, 0, 1)
  assert divide([head, cpus, cpus], None, 1, 99) == Placement(2, 8, 0)
  assert divide([cpus, cpus], 4, 1, 99) == Placement(4, 4, 0)
  assert divide([{"CPU": 1}, {"CPU": 1}], 4, 1, 99) == Placement(4, 0.5, 0)
  assert divide([cpus], 3, 1, 99) == Placement(3, 2, 0)
  with pytest.raises(UserError, match="at most 8, the cluster's GPUs"):
    divide([gpus, gpus], 9, 1, 99)
  with pytest.raises(UserError, match="neither a GPU nor a CPU"):
    divide([head], None, 1, 99)
