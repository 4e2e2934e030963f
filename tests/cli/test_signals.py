"""Ctrl-C ends a command with 130 and SIGTERM with 143, whatever it is doing."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = os.environ | {
  "PYTHONPATH": str(ROOT),
  "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "compiled"),
}


def start(*command, **how):
  return subprocess.Popen(
    [sys.executable, *map(str, command)], env=ENVIRONMENT, text=True,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how,
  )  # fmt: skip


def finish(process, timeout):
  """Its output; whatever happens, it does not outlive the test."""
  try:
    return process.communicate(timeout=timeout)
  finally:
    process.kill()


def signal_in_a_batch(tmp_path, number, seed):
  """Starts a job of 96, signals while the second batch is computed."""
  path, out = tmp_path / "in.jsonl", tmp_path / f"out{seed}.jsonl"
  question = "How many legs do {} spiders, 4 hens and 6 crabs have in all?"
  lines = [
    {"messages": [{"role": "user", "content": question.format(i)}], "id": i}
    for i in range(96)
  ]
  path.write_text("".join(json.dumps(x) + "\n" for x in lines))
  process = start(
    "-m", "nemodiff_jax.cli.generate", "--mode=linear_spec", "--batch_size=32",
    f"--prompts_file={path}", f"--output={out}", "--max_new_tokens=100",
  )  # fmt: skip
  while not (out.exists() and out.stat().st_size):
    assert process.poll() is None, process.communicate()
    time.sleep(0.01)
  time.sleep(random.Random(seed).random() * 0.3)
  process.send_signal(number)
  _, err = finish(process, 60)
  return process.returncode, err, out.read_bytes()


def said(err):
  """What was said, but for the progress on a slow machine."""
  return [x for x in err.splitlines() if not x.endswith(" in all")]


def check_interrupted(code, err, content):
  assert code == 130, err
  assert said(err) == ["the same command goes on from here", "interrupted"]
  assert content.endswith(b"\n") and 0 < content.count(b"\n") < 96
  for line in content.splitlines():
    assert json.loads(line)["completion_tokens"]


def test_ctrl_c_while_a_batch_is_computed(tmp_path):
  check_interrupted(*signal_in_a_batch(tmp_path, signal.SIGINT, 0))


@pytest.mark.slow
def test_ctrl_c_thirty_times(tmp_path):
  for seed in range(30):
    check_interrupted(*signal_in_a_batch(tmp_path, signal.SIGINT, seed))


def test_sigterm_while_a_batch_is_computed(tmp_path):
  code, err, content = signal_in_a_batch(tmp_path, signal.SIGTERM, 0)
  assert code == 143 and said(err) == ["the same command goes on from here"]
  assert content.endswith(b"\n")


COMMANDS = {
  "lost": """
while True:
  try:
    print('ready', flush=True)
    time.sleep(60)
  except BaseException:
    pass  # As in a callback of C code.
""",
  "tidy": """
try:
  print('ready', flush=True)
  time.sleep(60)
finally:
  time.sleep(0.2)
  print('tidied')
""",
  "own": """
heard = []
signal.signal(signal.SIGINT, lambda *_: heard.append(1))
print('ready', flush=True)
while not heard:
  time.sleep(0.01)
time.sleep(1.5)
return 5
""",
}


def call(kind, number):
  """Runs the body of a command, signals it when ready; (code, output)."""
  body = COMMANDS[kind].replace("\n", "\n  ")
  script = (
    "import signal, time\nfrom nemodiff_jax import signals\n"
    f"def main():{body}\n"
    "signals.run(main, grace=1.0)\n"
  )
  process = start("-c", script)
  assert process.stdout.readline() == "ready\n"
  process.send_signal(number)
  out, _ = finish(process, 120)
  return process.returncode, out


@pytest.mark.parametrize(
  ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_lost_exception_ends_a_command_all_the_same(number, code):
  assert call("lost", number) == (code, "ready\n")
  assert call("tidy", number) == (code, "tidied\n")


def test_a_handler_of_its_own_is_left_to_the_command():
  assert call("own", signal.SIGINT) == (5, "")


@pytest.mark.parametrize(
  ("body", "code", "err"),
  [("return 3", 3, ""), ("sys.exit('no')", 1, "no\n"), ("return 0", 0, "")],
)
def test_without_a_signal_the_code_is_the_commands(body, code, err):
  script = (
    "import sys\nfrom nemodiff_jax import signals\n"
    f"def main(): {body}\nsignals.run(main)\n"
  )
  process = start("-c", script)
  assert process.communicate()[1] == err and process.returncode == code
