"""On Ray: whatever dies, the rows are those of one process.

Every wait has an end: Ray may hang where it should fail.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from tests.fleet.conftest import (
  QUICK,
  lines_of,
  one_process,
  told,
  union,
  write,
)

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip(
  "ray.cluster_utils", reason="Ray is the extra [ray], of the slow tests"
)

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = os.environ | {
  "PYTHONPATH": str(ROOT),
  "JAX_PLATFORMS": "cpu",
  "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "compiled"),
}
LIMIT = 420  # Seconds of a test; most take a tenth of it.
STORE = 80 * 2**20
HOW = "--mode=ar", "--max_new_tokens=48", "--batch_size=4", "--rows_per_part=4"


@pytest.fixture(autouse=True)
def time_limit():
  """Ends a test that hangs."""

  def late(*_):
    raise TimeoutError(f"took longer than {LIMIT} s")

  before = signal.signal(signal.SIGALRM, late)
  signal.alarm(LIMIT)
  yield
  signal.alarm(0)
  signal.signal(signal.SIGALRM, before)


@pytest.fixture
def cluster():
  """A cluster with a head that computes nothing; nodes are added by tests."""
  with patched_environment(ENVIRONMENT):
    made = ray.Cluster(
      initialize_head=True,
      head_node_args={
        "num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE,
      },
    )  # fmt: skip
    yield made
    made.shutdown()


@contextlib.contextmanager
def patched_environment(given):
  before = dict(os.environ)
  os.environ.update(given)
  yield
  os.environ.clear()
  os.environ.update(before)


def add_nodes(cluster, count):
  nodes = [
    cluster.add_node(num_cpus=1, object_store_memory=STORE)
    for _ in range(count)
  ]
  cluster.wait_for_nodes()
  return nodes


@pytest.fixture(scope="module")
def long_job(tiny, tmp_path_factory):
  """160 lines, decoded for some seconds."""
  path = tmp_path_factory.mktemp("long") / "in.jsonl"
  lines = lines_of(tiny.config, 160)
  for i, line in enumerate(lines):
    line["max_new_tokens"] = 20 + i % 29
    line["ignore_eos"] = True
  return write(path, lines)


@pytest.fixture(scope="module")
def long_alone(long_job, folder, tmp_path_factory):
  return one_process(folder, long_job, tmp_path_factory.mktemp("one"), *HOW[:3])


@contextlib.contextmanager
def started(folder, job, output, *flags, **environment):
  """The command as a process of its own."""
  command = [
    sys.executable, "-m", "nemodiff_jax.cli.batch", f"--checkpoint={folder}",
    f"--prompts_file={job}", f"--output={output}", *flags,
  ]  # fmt: skip
  with open(f"{output}.err", "a+") as err:
    process = subprocess.Popen(
      command, env=ENVIRONMENT | environment, stdout=subprocess.PIPE, stderr=err,
      start_new_session=True,
    )  # fmt: skip
    try:
      yield process
    finally:
      process.kill()
      process.wait()


def finished(folder, job, output, *flags, **environment):
  """(exit code, standard error) of the command."""
  before = Path(f"{output}.err")
  before.unlink(missing_ok=True)
  with started(folder, job, output, *flags, **environment) as process:
    process.wait(LIMIT)
    return process.returncode, before.read_text()


def parts(output):
  return sorted(output.glob("part-*"))


def wait_for_parts(process, output, count):
  while len(parts(output)) < count:
    assert process.poll() is None, Path(f"{output}.err").read_text()
    time.sleep(0.01)


@pytest.mark.parametrize("actors", [1, 2, 4])
def test_rows_are_those_of_one_process(
  cluster, folder, job, alone, tmp_path, actors
):
  add_nodes(cluster, 2)
  out = tmp_path / "out"
  code, err = finished(
    folder, job, out, f"--actors={actors}", "--rows_per_part=2", *QUICK,
    f"--ray_address={cluster.address}",
  )  # fmt: skip
  assert code == 3, err
  assert told(union(out)) == told(alone)
  assert 1 <= err.count("has read the model in") <= actors
  assert "4 of 20 lines could not be served" in err


def test_a_node_that_dies_takes_no_row_with_it(
  cluster, folder, long_job, long_alone, tmp_path
):
  nodes = add_nodes(cluster, 2)
  out = tmp_path / "out"
  flags = *HOW, f"--ray_address={cluster.address}", "--actors=2"
  with started(folder, long_job, out, *flags) as process:
    wait_for_parts(process, out, 6)
    cluster.remove_node(nodes[0], allow_graceful=False)
    there = len(parts(out))
    process.wait(LIMIT)
  err = Path(f"{out}.err").read_text()
  assert process.returncode == 3, err
  assert there < len(parts(out)) == 40  # It died in the middle.
  assert err.count("has read the model in") >= 2
  assert told(union(out)) == told(long_alone)
  assert not list(out.glob(".part-*"))


def test_a_driver_that_is_killed_goes_on(
  folder, long_job, long_alone, tmp_path
):
  """On a cluster of its own, of which nothing stays behind."""
  out, mark = tmp_path / "out", uuid.uuid4().hex
  flags = *HOW, "--actors=2"
  with started(folder, long_job, out, *flags, MARK=mark) as process:
    wait_for_parts(process, out, 5)
    process.kill()
    process.wait()
  before = {p: p.read_bytes() for p in parts(out)}
  assert 5 <= len(before) < 40
  while alive := marked(mark):  # Ray's processes see it within seconds.
    time.sleep(0.1)
  assert not alive
  code, err = finished(folder, long_job, out, *flags)
  assert code == 3, err
  found = int(err.split(" parts done before")[0].split()[-1])
  assert len(before) <= found < 40
  assert all(p.read_bytes() == content for p, content in before.items())
  assert told(union(out)) == told(long_alone)
  assert not list(out.glob(".part-*"))


def test_a_driver_that_is_killed_goes_on_in_the_same_cluster(
  cluster, folder, long_job, long_alone, tmp_path
):
  """The actors of the first are gone, or do what the second does."""
  add_nodes(cluster, 2)
  out = tmp_path / "out"
  flags = *HOW, f"--ray_address={cluster.address}"
  with started(folder, long_job, out, *flags) as process:
    wait_for_parts(process, out, 5)
    process.kill()
    process.wait()
  code, err = finished(folder, long_job, out, *flags)
  assert code == 3 and "parts done before" in err
  assert told(union(out)) == told(long_alone)


def marked(mark):
  """Processes that were started with this mark in their environment."""
  found = []
  for path in Path("/proc").glob("[0-9]*/environ"):
    with contextlib.suppress(OSError):
      if mark.encode() in path.read_bytes():
        found.append(path.parent.name)
  return found


@pytest.mark.parametrize(
  ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_ends_the_job(folder, long_job, tmp_path, number, code):
  out = tmp_path / "out"
  with started(folder, long_job, out, *HOW, "--actors=1") as process:
    wait_for_parts(process, out, 2)
    process.send_signal(number)
    assert process.wait(60) == code
  assert "the same command goes on from here" in Path(f"{out}.err").read_text()


def test_a_model_that_cannot_be_read_ends_the_job(folder, job, tmp_path):
  bad = tmp_path / "bad"
  bad.mkdir()
  (bad / "config.json").write_bytes((folder / "config.json").read_bytes())
  code, err = finished(bad, job, tmp_path / "out", "--actors=1")
  assert code == 2
  (line,) = [x for x in err.splitlines() if x.startswith("error: ")]
  assert str(bad) in line and "part 0 on " in line


def test_an_actor_that_dies_of_a_part_ends_the_job(folder, job, tmp_path):
  """As one does that finds no memory: it is not started for ever."""
  site = tmp_path / "site"
  site.mkdir()
  (site / "sitecustomize.py").write_text(
    "import sys, types, os, signal\n"
    "class Die(types.ModuleType):\n"
    "  def __getattr__(self, name):\n"
    "    os.kill(os.getpid(), signal.SIGKILL)\n"
    "if any('default_worker' in a for a in sys.orig_argv):\n"
    "  sys.modules['nemodiff_jax.fleet.decoding'] = Die('decoding')\n"
  )
  code, err = finished(
    folder, job, tmp_path / "out", "--actors=1",
    PYTHONPATH=f"{site}{os.pathsep}{ROOT}",
  )  # fmt: skip
  assert code == 2
  (line,) = [x for x in err.splitlines() if x.startswith("error: ")]
  assert "its process died 5 times; is there memory for it?" in line


def test_a_full_disk_ends_the_job(folder, job, alone, tmp_path):
  disk = tmp_path / "disk"
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(disk)]
  if subprocess.run(mount, capture_output=True).returncode:
    pytest.skip("no file system can be mounted here")
  how = "--rows_per_part=4", "--actors=1", *QUICK
  try:
    code, err = finished(folder, job, disk / "out", *how)
    assert code == 2 and "No space left on device" in err
    (line,) = [x for x in err.splitlines() if x.startswith("error: ")]
    assert "the same command goes on" in line
    assert not list((disk / "out").glob(".part-*.[0-9a-f]*[0-9a-f]"))
    subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
    code, err = finished(folder, job, disk / "out", *how)
    assert code == 3, err
    assert told(union(disk / "out")) == told(alone)
  finally:
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "auto", "nowhere"])
def test_no_cluster_is_said(folder, job, tmp_path, address):
  code, err = finished(
    folder, job, tmp_path / "out", f"--ray_address={address}",
    RAY_TMPDIR=str(tmp_path),
  )  # fmt: skip
  assert code == 2
  assert f"error: ray_address {address!r}: no cluster there" in err


def test_the_benchmark_runs(tmp_path):
  done = subprocess.run(
    [sys.executable, "-m", "benchmarks.fleet", "--prompts=12"],
    env=ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT, cwd=ROOT,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert "2 actors" in done.stdout and "to start" in done.stdout


DOC = (ROOT / "docs" / "jobs.md").read_text().split("\n## Many devices\n")[1]


def example(name, where):
  """Runs the example of a section; returns what it prints."""
  section = DOC.split(f"\n### {name}\n")[1].split("\n### ")[0]
  (script,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
  path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
  done = subprocess.run(
    ["bash", "-e", "-c", script], env=ENVIRONMENT | {"PATH": path}, cwd=where,
    capture_output=True, text=True, timeout=LIMIT,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return done.stdout.splitlines()


def test_the_example_of_json_lines_runs(tmp_path):
  rows = [json.loads(line) for line in example("JSON Lines", tmp_path)]
  assert [row["id"] for row in rows] == ["a", "b", 3]
  assert rows[0]["text"].endswith("The answer is 32.")
  assert len(parts(tmp_path / "lines")) == 2


def test_the_example_of_parquet_runs(tmp_path):
  first, second = example("Parquet", tmp_path)
  assert first.startswith("a ") and second.startswith("b stop ")
  assert second.endswith("The answer is 8.'")


def test_the_example_of_batch_lines_runs(tmp_path):
  pytest.importorskip("pydantic", reason="the server's packages read them")
  first, second = map(json.loads, example("OpenAI's batch lines", tmp_path))
  (choice,) = first["response"]["body"]["choices"]
  assert "The answer is" in choice["message"]["content"]
  assert len(second["response"]["body"]["choices"]) == 2
