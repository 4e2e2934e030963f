"""Programs that a model wrote: judged, and harmless whatever they do."""

import os
import time
from pathlib import Path

import pytest

from nemodiff_jax.errors import UserError
from nemodiff_jax.evaluate import packaged, sandbox, score

jailed = pytest.mark.skipif(
  sandbox.missing() is not None, reason=f"no sandbox: {sandbox.missing()}"
)


@jailed
@pytest.mark.parametrize(
  "program",
  [
    "assert sum(range(5)) == 10",
    "open('mine', 'w').write('x')\nassert open('mine').read() == 'x'",
    "import tempfile\ntempfile.NamedTemporaryFile().write(b'x')",
    "import math, re, json, collections, itertools",
  ],
)
def test_a_good_program_passes(program):
  assert sandbox.passes(program)


@jailed
@pytest.mark.parametrize(
  "program",
  [
    "assert False",
    "import sys\nsys.exit(0)",
    "import os\nos._exit(0)",
    "raise SystemExit",
    "def f(:",
    "import ctypes\nctypes.string_at(0)",
    "x = bytearray(2**30)",
    "x = []\nwhile True: x.append(' ' * 2**20)",
    "while True: print('x' * 1000)",
    "f = open('x', 'w')\nwhile True: f.write('x' * 2**20)",
    "for i in range(100): open(f'f{i}', 'wb').write(b'x' * 500_000)",
    "import os\nwhile True: os.fork()",
    "import subprocess\nfor _ in range(9): subprocess.Popen(['sleep', '60'])",
    "import os\nos.kill(1, 9)",
    "import socket\nsocket.create_connection(('127.0.0.1', 22), 2)",
    "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "open('/usr/x', 'w')",
    "import os\nos.mkdir('/x')",
    "open('/proc/1/environ').read()",
  ],
)
def test_a_bad_program_is_wrong(program):
  begun = time.perf_counter()
  assert not sandbox.passes(program)
  assert time.perf_counter() - begun < 60  # It came back.


@jailed
def test_a_program_that_never_ends_is_ended_with_its_children():
  for body in ("while True: pass", "import time\ntime.sleep(999)"):
    code, reached = sandbox.run(body, seconds=2)
    assert code != 0 and not reached
  mark = "987654321"
  sandbox.run(f"import os, time\nif os.fork() == 0: time.sleep({mark})")
  lines = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline")
           if p.exists()]  # fmt: skip
  assert not any(b"program.py" in line for line in lines)


@jailed
def test_a_program_writes_nowhere_and_sees_no_file_of_ours(tmp_path):
  target = tmp_path / "mine"
  target.write_text("secret")
  tmp_path.chmod(0o777)
  target.chmod(0o666)
  for place in (target, "/etc/x", "/dev/shm/x", Path.home() / "x"):
    assert not sandbox.passes(f"open({str(place)!r}, 'w').write('gone')"), place
  assert not sandbox.passes(f"open({str(target)!r}).read()")
  assert target.read_text() == "secret"
  assert not (Path.home() / "x").exists() and not Path("/etc/x").exists()


@jailed
def test_what_is_shown_is_read_only_whoever_may_write_it(tmp_path, monkeypatch):
  """Python's folder may be the user's own, as this one is anybody's."""
  tmp_path.chmod(0o777)
  (tmp_path / "shown").write_text("text")
  (tmp_path / "shown").chmod(0o666)
  monkeypatch.setattr(sandbox, "_SYSTEM", (*sandbox._SYSTEM, str(tmp_path)))
  shown, fresh = str(tmp_path / "shown"), str(tmp_path / "fresh")
  assert sandbox.passes(f"assert open({shown!r}).read() == 'text'")
  assert not sandbox.passes(f"open({shown!r}, 'a').write('more')")
  assert not sandbox.passes(f"open({fresh!r}, 'w').write('more')")
  assert (tmp_path / "shown").read_text() == "text"


@jailed
def test_it_leaves_no_mount_and_no_folder():
  before = Path("/proc/self/mountinfo").read_text()
  assert sandbox.passes("open('x', 'w')")
  assert Path("/proc/self/mountinfo").read_text() == before


def test_unsafe_programs_are_judged_alike_and_end():
  assert sandbox.passes("assert True", isolated=False)
  assert not sandbox.passes("import sys\nsys.exit(0)", isolated=False)
  code, reached = sandbox.run("while True: pass", isolated=False, seconds=2)
  assert code != 0 and not reached


def test_code_is_refused_where_nothing_isolates_it(monkeypatch):
  monkeypatch.setattr(sandbox, "missing", lambda: "no namespaces")
  with pytest.raises(UserError, match=r"no namespaces.*--unsafe_code"):
    sandbox.check(unsafe=False)
  sandbox.check(unsafe=True)


def test_a_jail_that_cannot_be_built_is_no_wrong_answer(monkeypatch):
  """A machine's fault is not scored as the model's."""
  monkeypatch.setattr(sandbox, "run", lambda *a, **k: (97, False))
  sandbox.missing.cache_clear()
  try:
    with pytest.raises(UserError, match="exit code 97"):
      sandbox.passes("x = 1")
  finally:
    sandbox.missing.cache_clear()


PROBLEM = {
  "prompt": 'from math import *\n\n\ndef add(a, b):\n  """Sum."""\n',
  "test": "\ndef check(candidate):\n  assert candidate(2, 3) == 5\n",
  "entry_point": "add",
}


@pytest.mark.parametrize(
  ("text", "chat", "right"),
  [
    ("  return a + b\n", False, 1),
    ("  return a - b\n", False, 0),
    ("  import sys\n  sys.exit(0)\n", False, 0),
    ("Sure:\n```python\ndef add(a, b):\n  return a + b\n```\nDone.", True, 1),
    ("```\ndef add(a, b):\n  return floor(a) + b\n```", True, 1),
    ("def add(a, b):\n  return a + b", True, 1),
    ("I cannot.", True, 0),
  ],
)
def test_a_completion_is_judged_by_its_tests(text, chat, right):
  isolated = sandbox.missing() is None
  judge = packaged.tests_pass(PROBLEM, chat, isolated)
  assert judge(text).score == right


@pytest.mark.parametrize(
  ("text", "answer", "right"),
  [
    ("so 3 + 4 = 7", "7", 1),
    ("It is $1,234.50.", "1234.5", 1),
    ("7 of 9", "7", 0),
    ("\\boxed{7} and 9 more", "7", 1),
    ("\\boxed{8} then \\boxed{-7.0}", "-7", 1),
    ("3 left\n#### 12", "12", 1),
    ("#### twelve", "12", 0),
    ("no number", "0", 0),
    ("costs 18 dollars.", "18", 1),
  ],
)
def test_the_number_that_a_reply_ends_with(text, answer, right):
  assert score.number(answer)(text).score == right


def test_the_file_system_of_tests_is_not_the_jails():
  """The test of the tests: outside, the same program does its work."""
  assert sandbox.passes(
    f"import os\nos.listdir({os.getcwd()!r})", isolated=False
  )
  if sandbox.missing() is None:
    assert not sandbox.passes(f"import os\nos.listdir({os.getcwd()!r})")
