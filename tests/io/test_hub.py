"""Checkpoints by name, against a stand-in of the hub on this machine."""

import contextlib
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nemodiff_jax.errors import UserError
from nemodiff_jax.io.hub import _FILES, find_checkpoint
from tests import helpers

REPO, COMMIT = "nobody/tiny-diffusion", "0123456789abcdef" * 2 + "01234567"


class Hub(http.server.BaseHTTPRequestHandler):
  """The three answers of the hub that a download asks for."""

  folder = None

  def _answer(self, body: bool):
    parts = self.path.split("?")[0].strip("/").split("/")
    if parts[:2] == ["api", "models"] and "/".join(parts[2:4]) == REPO:
      revision = parts[5] if len(parts) > 5 else "main"
      if revision not in ("main", "v2", COMMIT):
        return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
      names = [
        str(p.relative_to(self.folder))
        for p in self.folder.rglob("*")
        if p.is_file()
      ]
      files = [{"rfilename": n} for n in [*names, "pytorch_model.bin"]]
      if parts[4:5] == ["tree"]:
        rows = [
          {
            "type": "file",
            "path": n,
            "oid": "0" * 40,
            "size": (self.folder / n).stat().st_size,
          }
          for n in names
        ]
        return self._send(200, json.dumps(rows).encode())
      info = {"id": REPO, "sha": COMMIT, "siblings": files, "private": False}
      return self._send(200, json.dumps(info).encode())
    if "/".join(parts[:2]) == REPO and parts[2] == "resolve":
      content = (self.folder / "/".join(parts[4:])).read_bytes()
      etag = hashlib.sha256(content).hexdigest()
      head = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}
      return self._send(200, content, head, body)
    return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

  def _send(self, code, content, head=None, body=True):
    self.send_response(code)
    for key, value in (head or {}).items():
      self.send_header(key, value)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    if body:
      self.wfile.write(content)

  def do_GET(self):
    self._answer(True)

  def do_HEAD(self):
    self._answer(False)

  def log_message(self, *_):
    pass


@contextlib.contextmanager
def serving(folder):
  """Address of a running stand-in that serves a folder."""
  handler = type("Bound", (Hub,), {"folder": folder})
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  yield f"http://127.0.0.1:{server.server_port}"
  server.shutdown()


@pytest.fixture
def hub(folder):
  """Address of a running stand-in that serves the tiny checkpoint."""
  with serving(folder) as address:
    yield address


def generate(hub, home, name):
  """Runs the command, since the hub's address is read at import."""
  pytest.importorskip("huggingface_hub")
  command = [sys.executable, "-m", "nemodiff_jax.cli.generate"]
  return subprocess.run(
    [*command, f"--checkpoint={name}", "--prompt=w9 w8", "--max_new_tokens=3"],
    env=os.environ
    | {"HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"},
    capture_output=True,
    text=True,
  )


def test_checkpoint_from_the_hub(hub, tmp_path, folder):
  done = generate(hub, tmp_path, f"{REPO}@v2")
  assert done.returncode == 0, done.stderr
  fetched = {p.name for p in tmp_path.rglob("snapshots/*/**/*")}
  assert {"model.safetensors", "adapter_model.safetensors"} <= fetched
  assert "pytorch_model.bin" not in fetched
  local = generate(hub, tmp_path, folder)
  assert local.stdout == done.stdout != ""


@pytest.mark.parametrize(
  ("name", "message"),
  [
    (f"{REPO}@nope", "has no revision 'nope'"),
    ("nobody/nothing", "there is no repository 'nobody/nothing'"),
  ],
)
def test_hub_refusals_are_named(hub, tmp_path, name, message):
  done = generate(hub, tmp_path, name)
  assert done.returncode == 2 and message in done.stderr
  assert "Traceback" not in done.stderr


def test_a_hub_out_of_reach_is_named(tmp_path):
  done = generate("http://127.0.0.1:9", tmp_path, REPO)
  assert done.returncode == 2 and "could not be fetched" in done.stderr


def fetched_by(hub, home, name=REPO):
  """Files that opening a checkpoint of the hub brings to this machine."""
  program = (
    "import sys; from nemodiff_jax.io.hub import find_checkpoint as f;"
    "from pathlib import Path; p = f(sys.argv[1]);"
    "print(*sorted(str(x.relative_to(p)) for x in p.rglob('*') if x.is_file()))"
  )
  done = subprocess.run(
    [sys.executable, "-c", program, name],
    env=os.environ
    | {"HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout.split()


@pytest.fixture
def crowded(tiny, tmp_path):
  """A repository of shards, with the same weights in other forms beside."""
  folder = tmp_path / "repository"
  folder.mkdir()
  helpers.write_checkpoint(folder, tiny, lora=True, shards=2)
  for name in (
    "README.md", "consolidated.safetensors", "params.json", "figure.png",
    "model-00003-of-00009.safetensors", "onnx/model.safetensors",
    "checkpoint-9/config.json", "checkpoint-9/model.safetensors",
    "checkpoint-9/model-00001-of-00002.safetensors", "onnx/t.jinja",
    "original/params/x", "linear_spec_lora/adapter_model.bin",
    "linear_spec_lora/checkpoint-9/adapter_model.safetensors",
  ):  # fmt: skip
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"not read")
  templates = folder / "additional_chat_templates"
  templates.mkdir()
  (templates / "tools.jinja").write_text("{{ messages }}")
  return folder


def test_what_is_read_is_fetched_and_no_more(crowded, tmp_path):
  pytest.importorskip("huggingface_hub")
  want = [
    "additional_chat_templates/tools.jinja",
    "config.json",
    "linear_spec_lora/adapter_config.json",
    "linear_spec_lora/adapter_model.safetensors",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
  ]
  with serving(crowded) as address:
    assert fetched_by(address, tmp_path / "home") == want
    # One file beside shards: only the one that is read.
    for shard in crowded.glob("model-*"):
      shard.rename(crowded / "model.safetensors")
    want[4:6] = ["model.safetensors"]
    want.sort()
    assert fetched_by(address, tmp_path / "other") == want


def test_every_part_of_a_checkpoint_is_fetched():
  utils = pytest.importorskip("huggingface_hub.utils")
  names = ["other/d/0f", "params/_METADATA", "linear_spec_lora/x", "a.jinja"]
  kept = utils.filter_repo_objects([*names, "x.bin"], allow_patterns=[*_FILES])
  assert list(kept) == names


def test_hub_package_missing(monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(UserError, match=r"install nemodiff-jax\[hub\]"):
    find_checkpoint("org/name@main")


def test_neither_folder_nor_hub_name(tmp_path):
  for name in ("/no/such/folder", "name", str(tmp_path / "x")):
    with pytest.raises(UserError, match="should be a folder or a hub name"):
      find_checkpoint(name)


@pytest.mark.parametrize(
  "name",
  [
    "./typo",
    "../typo",
    "../a/b",
    "/org/name",
    "~/typo",
    "./org/name",
    "~no-such-user/x",
  ],
)
def test_paths_are_never_looked_for_on_the_hub(name, monkeypatch):
  hub = pytest.importorskip("huggingface_hub")
  asked = []
  monkeypatch.setattr(hub, "snapshot_download", lambda *a, **k: asked.append(a))
  with pytest.raises(UserError, match="there is no such folder"):
    find_checkpoint(name)
  assert not asked


@pytest.mark.parametrize(
  "name", ["a/..", "org/-name", "a..b/c", "o/" + "x" * 97]
)
def test_names_that_the_hub_cannot_have(name):
  pytest.importorskip("huggingface_hub")
  with pytest.raises(UserError, match="no folder .* it can be no repository"):
    find_checkpoint(name)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_names_that_no_folder_can_have(name):
  with pytest.raises(UserError, match="folder"):
    find_checkpoint(name)


def test_a_mistyped_path_ends_the_command_with_one_line(folder):
  done = generate("http://127.0.0.1:9", folder, "./typo")
  assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
  assert "'./typo' should be a folder" in done.stderr


def test_a_file_is_no_folder(folder, tmp_path):
  with pytest.raises(UserError, match="got a file; give the folder"):
    find_checkpoint(str(folder / "model.safetensors"))
  (tmp_path / "m.gguf").write_bytes(b"GGUF")
  with pytest.raises(UserError, match="got a file; convert it with .*trimode"):
    find_checkpoint(str(tmp_path / "m.gguf"))


def test_a_missing_embedded_checkpoint_is_named(monkeypatch, tmp_path):
  monkeypatch.setattr("importlib.resources.files", lambda _: tmp_path)
  with pytest.raises(UserError, match="embedded checkpoint is missing from"):
    find_checkpoint(None)


def test_embedded_is_a_name_unless_a_folder_has_it(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert find_checkpoint("embedded") == find_checkpoint(None)
  (tmp_path / "embedded").mkdir()
  assert find_checkpoint("embedded") == Path("embedded")
