"""A job of mixed lines, and what one process makes of it."""

import contextlib
import json
import pickle

import pytest

from nemodiff_jax.cli import batch, generate
from nemodiff_jax.fleet import cluster
from nemodiff_jax.fleet.cluster import Placement
from nemodiff_jax.fleet.worker import Worker
from tests import helpers

QUICK = "--max_new_tokens=6", "--batch_size=3"


def lines_of(config, count, **more):
  """Lines with settings of their own; some share an id, some are no line."""
  prompts = helpers.prompts_of(
    config, tuple(1 + 7 * i % 40 for i in range(count))
  )
  lines = [
    {
      "id": f"p{i}", "prompt_ids": p, "max_new_tokens": 3 + i % 6, "seed": i,
      "temperature": 0.9 if i % 2 else 0.0, **more,
    }
    for i, p in enumerate(prompts)
  ]  # fmt: skip
  del lines[4]["id"]  # It has the number of its line, 5.
  if count > 12:
    lines[9]["id"] = "p1"  # In another part.
    lines[10]["prompt_ids"] = [10**6]
    lines[11]["colour"] = "red"
  return lines


def write(path, lines):
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return path


@pytest.fixture(scope="session")
def job(tiny, tmp_path_factory):
  """A prompts file of 20 lines, of which 4 cannot be served."""
  path = tmp_path_factory.mktemp("job") / "in.jsonl"
  write(path, lines_of(tiny.config, 19))
  with path.open("a") as file:
    file.write("no JSON\n")
  return path


@pytest.fixture(scope="session")
def alone(job, folder, tmp_path_factory):
  """What the job on one machine makes of it: lines in order."""
  return one_process(folder, job, tmp_path_factory.mktemp("alone"), *QUICK)


@pytest.fixture
def here(monkeypatch):
  """Parts go in turn to two workers in this process."""

  def run(parts, job, place):
    workers = [Worker(job), Worker(job)]
    for i, part in enumerate(parts):
      yield workers[i % 2].serve(pickle.loads(pickle.dumps(part)))

  monkeypatch.setattr(cluster, "check_installed", lambda: None)
  monkeypatch.setattr(cluster, "connected", lambda *_: contextlib.nullcontext())
  monkeypatch.setattr(cluster, "place", lambda *_: Placement(2, 1, 0))
  monkeypatch.setattr(cluster, "run", run)


@pytest.fixture
def run(here, folder, tmp_path):
  """Runs the command; returns (exit code, standard error)."""

  def call(*flags, checkpoint=folder, output=tmp_path / "out"):
    code, out, err = helpers.run_command(
      batch.main, "batch", f"--checkpoint={checkpoint}", f"--output={output}",
      *flags,
    )  # fmt: skip
    assert out == ""
    return code, err

  return call


def one_process(folder, job, where, *flags):
  """Lines of the output of cli.generate."""
  out = where / "out.jsonl"
  code, _, err = helpers.run_command(
    generate.main, "generate", f"--checkpoint={folder}",
    f"--prompts_file={job}", f"--output={out}", "--keep_order", *flags,
  )  # fmt: skip
  assert code in (0, 3), err
  return read(out)


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def union(folder):
  """Rows of all part files, in the order of the lines."""
  return [
    row for part in sorted(folder.glob("part-*.jsonl")) for row in read(part)
  ]


def told(rows):
  """What has to be equal, however the rows were distributed."""
  return [(r["id"], r.get("token_ids"), r.get("error")) for r in rows]
