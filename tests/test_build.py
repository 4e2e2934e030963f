"""The BUILD files, the documents and the layout, held against the code."""

import ast
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RULES = ("py_library", "py_binary", "py_test")
TOP = {
  "nemodiff_jax", "pallas_kernels", "checkpoints_convert", "train", "tests",
  "benchmarks",
}  # fmt: skip


def files(pattern: str) -> list[str]:
  """Files of the project, committed or about to be."""
  if not (ROOT / ".git").exists():
    pytest.skip("not a git checkout")
  command = ["git", "ls-files", "-co", "--exclude-standard", pattern]
  out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  return [f for f in out.stdout.split() if (ROOT / f).exists()]


def targets() -> dict[str, dict]:
  """Label -> rule, srcs and deps of every target."""
  found = {}
  for path in files("*BUILD"):
    folder = str(Path(path).parent).removeprefix(".")
    for node in ast.parse((ROOT / path).read_text()).body:
      call = node.value
      if not isinstance(call, ast.Call) or call.func.id not in RULES:
        continue
      given = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
      label = f"//{folder}:{given['name']}"
      assert label not in found, f"{label} twice"
      found[label] = {
        "rule": call.func.id,
        "srcs": [f"{folder}/{s}" for s in given["srcs"]],
        "deps": [full(d, folder) for d in given.get("deps", [])],
      }
  return found


def full(label: str, folder: str) -> str:
  """A label with its folder and name written out."""
  if label.startswith(":"):
    return f"//{folder}{label}"
  return label if ":" in label else f"{label}:{label.rsplit('/', 1)[-1]}"


def test_every_source_file_is_in_exactly_one_target():
  listed = [s for t in targets().values() for s in t["srcs"]]
  assert sorted(listed) == sorted(files("*.py"))


def test_rules_fit_the_files():
  for label, target in targets().items():
    tests = [Path(s).name.startswith("test_") for s in target["srcs"]]
    assert all(tests) if target["rule"] == "py_test" else not any(tests), label
    if target["rule"] == "py_binary":
      assert "__main__" in (ROOT / target["srcs"][0]).read_text(), label


def test_deps_are_what_is_imported():
  found = targets()
  home = {s: label for label, t in found.items() for s in t["srcs"]}
  for label, target in found.items():
    needed = {home[f] for s in target["srcs"] for f in imported(s, home)}
    assert needed - {label} == set(target["deps"]), label


def imported(source: str, home) -> set[str]:
  """Files of the project that a file imports."""
  names = set()
  for node in ast.walk(ast.parse((ROOT / source).read_text())):
    if isinstance(node, ast.Import):
      names |= {a.name for a in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      names |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
  paths = {n.replace(".", "/") for n in names if n.split(".")[0] in TOP}
  both = {p + end for p in paths for end in (".py", "/__init__.py")}
  return both & set(home)


ALLOWED = {  # Arrows between the rooms point one way.
  "pallas_kernels": set(),
  "checkpoints_convert": {
    "nemodiff_jax/__init__.py", "nemodiff_jax/command_line.py",
    "nemodiff_jax/errors.py", "nemodiff_jax/io", "nemodiff_jax/nn",
    "nemodiff_jax/signals.py", "nemodiff_jax/text", "pallas_kernels",
  },
  "nemodiff_jax/backend.py": set(),
  "nemodiff_jax/command_line.py": {
    "nemodiff_jax/__init__.py", "nemodiff_jax/errors.py",
  },
  "nemodiff_jax/errors.py": set(),
  "nemodiff_jax/signals.py": set(),
  "nemodiff_jax/nn": {"pallas_kernels", "nemodiff_jax/errors.py"},
  "nemodiff_jax/text": {"nemodiff_jax/errors.py"},
  "nemodiff_jax/io": {
    "nemodiff_jax/errors.py", "nemodiff_jax/nn", "nemodiff_jax/text",
  },
  "nemodiff_jax/decode": {
    "pallas_kernels", "nemodiff_jax/errors.py", "nemodiff_jax/nn",
    "nemodiff_jax/text",
  },
  "nemodiff_jax/serve": {
    "nemodiff_jax/__init__.py", "nemodiff_jax/errors.py", "nemodiff_jax/nn",
    "nemodiff_jax/text", "nemodiff_jax/decode", "nemodiff_jax/io",
    "nemodiff_jax/prompts.py", "pallas_kernels",
  },
  "nemodiff_jax/evaluate": {
    "pallas_kernels", "nemodiff_jax/__init__.py", "nemodiff_jax/api.py",
    "nemodiff_jax/decode", "nemodiff_jax/errors.py", "nemodiff_jax/io",
    "nemodiff_jax/nn", "nemodiff_jax/prompts.py",
  },
}  # fmt: skip


def room(path: str) -> str:
  """The part of the house a file belongs to."""
  if path in ALLOWED:
    return path
  parts = path.split("/")
  return "/".join(parts[:2]) if parts[0] == "nemodiff_jax" else parts[0]


def test_imports_point_one_way():
  sources = [f for f in files("*.py") if room(f) in ALLOWED]
  home = dict.fromkeys(files("*.py"))
  for source in sources:
    for target in imported(source, home):
      if not target.endswith("__init__.py") or room(target) == target:
        if room(target) != room(source):
          assert room(target) in ALLOWED[room(source)], (source, target)


def test_buildifier_is_content():
  if not shutil.which("npx"):
    pytest.skip("npx is not installed")
  command = ["npx", "--yes", "@bazel/buildifier@8", "-mode=check"]
  found = files("*BUILD")
  done = subprocess.run(
    [*command, *found], cwd=ROOT, capture_output=True, text=True
  )
  if "npm error" in done.stderr and "network" in done.stderr:
    pytest.skip("npm cannot reach its registry")
  assert done.returncode == 0, done.stdout + done.stderr


def test_library_code_never_asserts_and_names_no_token_id():
  for source in files("*.py"):
    if not source.startswith(
      ("nemodiff_jax", "checkpoints", "pallas", "train")
    ):
      continue
    text = (ROOT / source).read_text()
    assert not re.search(r"^\s*assert ", text, re.M), source
    if not source.endswith("nn/config.py"):  # Holds the released presets.
      ids = r"\b(mask|eos|bos|pad)(_token)?(_id)? *== *\d"
      assert not re.search(ids, text), source


def test_files_stay_short():
  for source in files("*.py"):
    lines = len((ROOT / source).read_text().splitlines())
    limit = 500 if source.startswith("tests") else 400
    assert lines <= limit, (source, lines)


def test_requirements_name_every_given_package():
  text = (ROOT / "requirements.txt").read_text()
  for name in (
    "jax flax optax orbax-checkpoint jax-triton sentencepiece absl-py pytest"
  ).split():
    assert re.search(rf"^{name}[><=]", text, re.M), name
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  wanted = set(project["dependencies"])
  assert wanted <= set(text.splitlines())


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not there")
def test_only_the_slow_tests_install_tokamax():
  """The very requirement of the extra `cuda`, as pip is handed it."""

  def recipe(target: str) -> list[str]:
    command = ["make", "-n", "-B", target]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return re.findall(r"(?:.*\\\n)*.+", out.stdout)  # With its line ends.

  assert not any("tokamax" in command for command in recipe("test"))
  pip = ".venv-slow/bin/python -m pip install -q "
  (command,) = [x for x in recipe("test-slow") if "tokamax" in x]
  assert command.startswith(pip)
  shown = ["sh", "-c", "printf %s " + command.removeprefix(pip)]
  given = subprocess.run(shown, cwd=ROOT, capture_output=True, text=True)
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  extras = project["optional-dependencies"]
  assert given.stdout in extras["cuda"]
  for extra in ("hub", "train", "convert", "aot", "dev"):
    assert not any("tokamax" in x for x in extras[extra])


def test_the_tree_is_the_real_one():
  """Every path that docs/tree.md names exists, and the other way."""
  tree = (ROOT / "docs" / "tree.md").read_text().split("<!-- tree -->")[1]
  named = {m for m in re.findall(r"^  *([\w./]+\.py|[\w./]+/) ", tree, re.M)}
  for name in named:
    assert (ROOT / name.strip()).exists(), name
  for top in ("nemodiff_jax", "pallas_kernels", "checkpoints_convert", "train"):
    for source in files(f"{top}/*.py"):
      if not source.endswith("__init__.py"):
        assert source in named, f"{source} is not in docs/tree.md"
