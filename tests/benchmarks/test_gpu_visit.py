"""The GPU visit: figures survive a limit, calls make one table, toy sizes run."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import gpu_visit

# What a machine with jax for CUDA, flax and optax need not have.
ABSENT = "ml_collections", "tensorboardX", "grain", "gguf", "jax_triton"
BLOCKER = f"""
import sys

class Absent:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in {ABSENT!r}:
      raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def visit(tmp_path, *flags, code=0):
  """Runs the command on a CPU, without the packages of ABSENT."""
  (tmp_path / "sitecustomize.py").write_text(BLOCKER)
  done = subprocess.run(
    [sys.executable, "-m", "benchmarks.gpu_visit", f"--out={tmp_path}", *flags],
    env=os.environ
    | {
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}",
    },
    capture_output=True,
    text=True,
  )
  assert done.returncode == code, done.stderr
  return done


def figure(part, what, value, **more):
  """A line as `visit_parts` writes it."""
  about = {"device": "NVIDIA H200", "jax": "0.11.2", "toy": False}
  at = {"time": "2026-11-25 10:00:00"}
  return about | at | {"part": part, "what": what, "value": value, **more}


def test_toy_parts_run_where_only_jax_and_flax_are(tmp_path):
  visit(tmp_path, "--toy", "--parts=suite", "--limit=300")
  text = visit(tmp_path, "--toy", "--parts=floors", "--limit=300").stdout
  assert "## suite: done" in text  # Of the call before.
  assert "## floors: done" in text
  assert "toy sizes" in text
  lines = gpu_visit.read(tmp_path / "results.jsonl")
  suite = [x for x in lines if x["part"] == "suite" and "what" in x]
  assert [x["right"] for x in suite] == [True, True]
  assert "| copy | " in text and "GB/s | - | - |" in text
  assert (tmp_path / "visit.md").read_text() in text


@pytest.mark.slow
def test_every_toy_part_runs_where_only_jax_and_flax_are(tmp_path):
  text = visit(tmp_path, "--toy", "--limit=600").stdout
  assert text.count(": done") == 2 * len(gpu_visit.LIMITS)
  assert "1 of 1 texts with the CPU's ids" in text
  assert "ar loop, int8, per pass" in text
  assert "WRONG" not in text


def test_without_a_gpu_a_part_says_so(tmp_path):
  text = visit(tmp_path, "--parts=floors").stdout
  assert "floors: failed: needs a GPU, found cpu; --toy runs anywhere" in text


def test_what_was_measured_before_the_limit_is_kept(tmp_path, monkeypatch):
  line = json.dumps(figure("decode", "ar", 5.0, unit="ms", predicted=4.0))
  (tmp_path / "slow_part.py").write_text(
    "import os, pathlib, sys, time\n"
    "out = pathlib.Path(sys.argv[2].split('=')[1])\n"
    f"(out / 'results.jsonl').write_text({line!r} + '\\n')\n"
    "(out / 'pid').write_text(str(os.getpid()))\n"
    "time.sleep(600)\n"
  )
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))
  monkeypatch.setattr(gpu_visit, "PARTS_MODULE", "slow_part")
  end = gpu_visit.run_part("decode", tmp_path, 3, False)
  assert end["end"] == "stopped at its limit of 3 s"
  gpu_visit.append(tmp_path / "results.jsonl", end)
  text = gpu_visit.table(gpu_visit.read(tmp_path / "results.jsonl"))
  assert "| ar | 5 ms | 4 | 1.25 | 2026-11-25 |" in text
  with pytest.raises(ProcessLookupError):
    os.kill(int((tmp_path / "pid").read_text()), 0)


def test_calls_make_one_table(tmp_path):
  path = tmp_path / "results.jsonl"
  for line in (
    figure("decode", "ar", 9.0, unit="ms", predicted=4.0),
    figure("suite", "1x1", 0.5, unit="of the error", right=False),
    figure("decode", "spec", 1.0, unit="ms") | {"error": "no | room\nhere"},
    figure("decode", "ar", 8.0, unit="ms", predicted=4.0),
    {"part": "decode", "toy": False, "end": "done", "seconds": 7},
  ):
    gpu_visit.append(path, line)
  with path.open("a") as file:
    file.write('{"part": "decode", "what": "cut sho')
  text = gpu_visit.table(gpu_visit.read(path))
  assert "NVIDIA H200, jax 0.11.2\n" in text
  assert "## decode: done (7 s)" in text
  assert "## suite: not ended" in text
  assert "| ar | 8 ms | 4 | 2.00 |" in text and "9 ms" not in text
  assert "| 1x1 | 0.5 of the error **WRONG** |" in text
  assert "| spec | no / room here |" in text


@pytest.mark.parametrize(
  ("flag", "said"),
  [
    ("--parts=suite,x", "--parts should be of suite,modes,floors,decode"),
    ("--limit=0", "--limit should be above 0 seconds, got 0.0"),
  ],
)
def test_bad_flags_are_refused(tmp_path, flag, said):
  assert said in visit(tmp_path, flag, code=2).stderr
  assert not (tmp_path / "results.jsonl").exists()
