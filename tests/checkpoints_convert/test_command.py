"""The one command that converts, by words."""

import subprocess
import sys

import nemodiff_jax as nd
from tests import helpers


def run(*words):
  command = [sys.executable, "-m", "checkpoints_convert.main", *words]
  return subprocess.run(command, capture_output=True, text=True)


def test_words_lead_to_the_converters(tmp_path, tiny):
  helpers.write_checkpoint(tmp_path / "hf", tiny)
  source, target = f"--source={tmp_path / 'hf'}", f"--target={tmp_path / 'o'}"
  done = run("to-orbax", source, target, "--dry-run")
  assert done.returncode == 0, done.stderr
  assert not (tmp_path / "o").exists()
  done = run("verify", source, f"--target={tmp_path / 'hf'}")
  assert done.returncode == 0 and done.stdout.endswith("same\n")
  done = run("to-hf", source, target, "--shard-sise=5GB")
  assert done.returncode == 2
  assert "(nearest known flag: 'shard_size')" in done.stderr


def test_the_words_are_told():
  done = run("--help")
  assert done.returncode == 0
  for word in ("to-orbax", "to-hf", "trimode", "verify"):
    assert f"nemodiff-convert {word} --source" in done.stdout
  assert run("--version").stdout == f"nemodiff {nd.__version__}\n"
  done = run("to-orbx")
  assert (done.returncode, done.stderr) == (
    2,
    "error: expected one of to-orbax, to-hf, trimode, verify, got 'to-orbx'"
    " (nearest known word: 'to-orbax'); --help explains them.\n",
  )
