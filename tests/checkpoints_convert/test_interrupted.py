"""Conversions killed at random points, and the commands as processes."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from checkpoints_convert import convert
from checkpoints_convert.folders import new_folder
from nemodiff_jax.io.checkpoint import open_checkpoint
from tests import helpers

# Kills itself at the n-th look at or change of the file system.
CHILD = """
import os, signal, sys
from checkpoints_convert import convert
source, target, layout, last = sys.argv[1:]
seen = 0
def watch(event, args):
  global seen
  if event == "open" or event.startswith(("os.", "shutil.")):
    seen += 1
    if seen == int(last):
      os.kill(os.getpid(), signal.SIGKILL)
import orbax.checkpoint
sys.addaudithook(watch)
convert.convert(source, target, getattr(convert, layout), overwrite=True)
print("events", seen)
"""


def start(source, target, layout, last):
  command = [sys.executable, "-c", CHILD, source, target, layout, str(last)]
  return subprocess.run(command, capture_output=True, text=True)


def norm_of(folder):
  """A tensor that tells the two models apart, of a checkpoint that loads."""
  params = open_checkpoint(str(folder)).load_params()
  return float(np.asarray(params["norm"]["weight"])[0])


@pytest.fixture
def two(tmp_path, tiny):
  """Two checkpoints that differ; norm_of is 1 for the first, 2 for the other."""
  for name, scale in (("older", 1), ("source", 2)):
    norm = {"weight": np.full(48, scale, np.float32)}
    one = helpers.Tiny(tiny.config, {**tiny.params, "norm": norm}, tiny.lora)
    helpers.write_checkpoint(tmp_path / name, one, lora=True, shards=2)
  return tmp_path


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_points(two, kills):
  source, target = str(two / "source"), two / "work" / "target"
  done = start(source, str(target), "to_orbax", -1)
  assert done.returncode == 0, done.stderr
  events = int(done.stdout.split()[-1])
  rng, killed = np.random.default_rng(kills), 0
  for i in range(kills):
    shutil.rmtree(two / "work")
    layout, replaces = ("to_orbax", "to_hf")[i % 2], i % 3 > 0
    if replaces:
      shutil.copytree(two / "older", target)
    # The Hugging Face layout takes about a third of the steps.
    last = rng.integers(1, events // (1 if layout == "to_orbax" else 3))
    done = start(source, str(target), layout, last)
    if done.returncode == 0:  # So few steps this time.
      assert norm_of(target) == 2
      continue
    assert done.returncode == -signal.SIGKILL, done.stderr
    killed += 1
    if target.exists():
      assert norm_of(target) in ((1, 2) if replaces else (2,))
    elif replaces:  # Between the two renames; brought back by the next run.
      assert norm_of(target.with_name(".target.older")) == 1
    assert norm_of(source) == 2
    convert.convert(source, str(target), convert.to_orbax, overwrite=True)
    assert norm_of(target) == 2
    assert [p.name for p in (two / "work").iterdir()] == ["target"]
  assert killed > kills // 2


def test_older_target_survives_a_failure_at_any_step(two, monkeypatch):
  """Each rename fails once: the older folder is where it was."""
  target = two / "older"
  real = type(target).rename
  for failing in (1, 2):
    count = iter(range(1, 9))

    def rename(self, other, count=count, failing=failing):
      if next(count) == failing:
        raise OSError("no")
      return real(self, other)

    monkeypatch.setattr(type(target), "rename", rename)
    with pytest.raises(OSError), new_folder(target, overwrite=True) as folder:
      (folder / "config.json").write_text("{}")
    assert norm_of(target) == 1
    assert sorted(p.name for p in two.iterdir()) == ["older", "source"]


def test_older_target_comes_back_after_a_kill_between_renames(two):
  target = two / "older"
  target.rename(two / ".older.older")
  with pytest.raises(KeyError), new_folder(target, overwrite=True):
    raise KeyError
  assert norm_of(target) == 1


def test_what_a_kill_left_of_the_older_target_is_no_obstacle(two):
  """Killed after both renames, while the older folder was being removed."""
  target, left = two / "older", two / ".older.older"
  left.mkdir()
  (left / "config.json").write_text("{}")
  convert.convert(
    str(two / "source"), str(target), convert.to_orbax, overwrite=True
  )
  assert norm_of(target) == 2
  assert sorted(p.name for p in two.iterdir()) == ["older", "source"]


def run(command, *flags, before=(), **how):
  line = [sys.executable, "-m", f"checkpoints_convert.{command}", *flags]
  return subprocess.run([*before, *line], capture_output=True, text=True, **how)


def test_commands_and_their_exit_codes(two):
  pair = f"--source={two / 'source'}", f"--target={two / 'hf'}"
  done = run("orbax_to_hf", *pair, "--shard_size=64kB", "--dtype=bfloat16")
  assert done.returncode == 0, done.stderr
  assert "model-00001-of-00002.safetensors: " in done.stdout
  assert "B/s" not in done.stderr  # No bar where there is no terminal.
  again = run("orbax_to_hf", *pair, "--shard_size=7x")
  assert again.returncode == 2
  assert (
    again.stderr == "error: --shard_size should be such as 5GB, got '7x'.\n"
  )
  done = run("verify", *pair, "--nologits")
  assert done.returncode == 2
  assert "[48] float32 and [48] bfloat16\ndiffer" in done.stdout
  assert done.stdout.endswith("\ndifferent\n")


# The command as it is, held in the middle of writing.
HELD = """
import pathlib, time
from checkpoints_convert import command, convert, folders, hf_to_orbax
def hold(source, target, *args, **how):
  with folders.new_folder(pathlib.Path(target)) as folder:
    (folder / "config.json").write_text("{}")
    print("ready", flush=True)
    time.sleep(60)
convert.convert = hold
command.run(hf_to_orbax.main)
"""


@pytest.mark.parametrize(
  ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_leaves_nothing_half_written(two, number, code):
  pair = f"--source={two / 'source'}", f"--target={two / 'new'}"
  process = subprocess.Popen(
    [sys.executable, "-c", HELD, *pair], stdout=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == "ready\n"
  process.send_signal(number)
  assert process.wait(60) == code
  assert sorted(p.name for p in two.iterdir()) == ["older", "source"]


@pytest.mark.parametrize(
  "flags", [["--nope=1"], ["--source=x", "--dtype=int3"]]
)
def test_a_flag_that_does_not_parse_is_exit_2(flags):
  done = run("hf_to_orbax", *flags)
  assert done.returncode == 2 and done.stdout == ""
  assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_a_full_disk_is_told_in_one_line(two):
  """A limit on the size of files stands for it."""
  pair = f"--source={two / 'source'}", f"--target={two / 'new'}"
  limit = ("bash", "-c", 'ulimit -f 12; exec "$@"', "bash")
  env = os.environ | {"JAX_PLATFORMS": "cpu"}
  done = run("hf_to_orbax", *pair, before=limit, env=env)
  assert done.returncode == 2
  assert done.stderr.startswith(f"error: {two / 'new'}: could not be written")
  assert done.stderr.count("\n") == 1
  assert sorted(p.name for p in two.iterdir()) == ["older", "source"]


@pytest.mark.slow
def test_the_other_commands(two):
  source = f"--source={two / 'source'}"
  orbax, new = (f"--target={two / name}" for name in ("orbax", "new"))
  done = run("hf_to_orbax", source, orbax)
  assert done.returncode == 0, done.stderr
  done = run("verify", source, orbax)
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.endswith("largest difference 0\nsame\n")
  done = run("ar_to_trimode", source, new, "--mask=9", "--merge_lora=own")
  assert "unknown flag --merge_lora" in done.stderr
  done = run("ar_to_trimode", source, new, "--mask=9", "--block_size=4")
  assert done.returncode == 0, done.stderr
  config = json.loads((two / "new" / "config.json").read_text())
  assert (config["mask_token_id"], config["block_size"]) == (9, 4)
