"""Part files are whole or not there; a folder belongs to one job."""

import errno
import os

import pytest

from nemodiff_jax.errors import UserError
from nemodiff_jax.fleet import folder
from nemodiff_jax.fleet.folder import Folder, Tries, write_part
from tests.fleet.conftest import read

ROWS = {2: {"id": "b", "error": {}}, 1: {"id": "a", "text": "x"}}
SETTINGS = {"mode": "ar", "seed": 0}


def refused(path, settings=SETTINGS):
  with pytest.raises(UserError) as e:
    Folder(str(path), settings)
  return str(e.value)


def test_parts_that_are_there_are_done(tmp_path):
  out = tmp_path / "deep" / "out"
  with Folder(str(out), SETTINGS) as held:
    assert held.done == set()
    for number in (0, 7, 1234567):
      write_part(held.path, number, "jsonl", ROWS, False)
  assert read(out / "part-000007.jsonl") == [ROWS[1], ROWS[2]]
  with Folder(str(out), SETTINGS) as held:
    assert held.done == {0, 7, 1234567}
    assert held.errors(7, "jsonl") == 1


def test_the_folder_of_another_job_is_refused(tmp_path):
  with Folder(str(tmp_path / "out"), SETTINGS) as held:
    write_part(held.path, 0, "jsonl", ROWS, False)
  text = refused(tmp_path / "out", {**SETTINGS, "seed": 1})
  assert "other settings (seed: 0, now 1)" in text
  os.remove(tmp_path / "out" / folder.MANIFEST)
  assert "no _manifest.json of a job" in refused(tmp_path / "out")
  other = tmp_path / "notes"
  other.mkdir()
  (other / "notes.txt").write_text("mine")
  assert "holds files" in refused(other)
  assert "is a file; name a folder" in refused(other / "notes.txt")
  assert "got ''" in refused("")
  assert os.listdir(other) == ["notes.txt"]


def test_two_jobs_do_not_share_a_folder(tmp_path):
  with Folder(str(tmp_path), SETTINGS):
    assert "being written by another job" in refused(tmp_path)
  with Folder(str(tmp_path), SETTINGS):
    pass


def test_what_a_killed_job_left_is_cleared_away(tmp_path):
  (tmp_path / ".part-000001.0123").write_text("half of it")
  (tmp_path / ".part-000001.tries").write_text(".....")
  with Folder(str(tmp_path), SETTINGS) as held:
    assert held.done == set()
  assert os.listdir(tmp_path) == [folder.MANIFEST]


def test_a_full_disk_leaves_no_part(tmp_path, monkeypatch):
  full = OSError(errno.ENOSPC, "No space left on device")

  def no_space(*_):
    raise full

  for call in ("fsync", "replace"):
    with (
      monkeypatch.context() as patched,
      pytest.raises(OSError, match="space"),
    ):
      patched.setattr(os, call, no_space)
      write_part(str(tmp_path), 0, "jsonl", ROWS, False)
    assert os.listdir(tmp_path) == []


def test_a_part_is_tried_so_many_times(tmp_path):
  for _ in range(2):  # What was done before counts no more.
    for _ in range(3):
      Tries(str(tmp_path), 4, 3).begin()
    with pytest.raises(UserError, match=r"died 3 times.*smaller --batch_size"):
      Tries(str(tmp_path), 4, 3).begin()
    Tries(str(tmp_path), 5, 3).begin()
    Tries(str(tmp_path), 4, 3).end()
