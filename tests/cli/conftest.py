"""The command in this process, and a job for it."""

import json

import pytest
from absl.testing import flagsaver

from nemodiff_jax.cli import generate
from nemodiff_jax.cli import main as process
from tests import helpers

TEMPLATE = (
  "w1 {% for m in messages %}"
  "{{ raise_exception('no tools here') if m.role == 'tool' }}"
  "{{ {'user': 'w7', 'assistant': 'w8', 'system': 'w6'}[m.role] }}"
  " {{ m.content }} {% endfor %}"
  "{{ 'w11' if enable_thinking else 'w12' }}"
)


@pytest.fixture
def run(folder, capsys):
  """Runs the command in this process; returns (exit code, stdout, stderr)."""

  def call(*flags, checkpoint=folder):
    argv = ["generate", f"--checkpoint={checkpoint}", *flags]
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as stop:
      process.run(generate.main, argv)
    out = capsys.readouterr()
    return stop.value.code or 0, out.out, out.err

  return call


@pytest.fixture
def chatty(folder):
  """The checkpoint's folder, with a chat template for the time of a test."""
  path = folder / "chat_template.jinja"
  path.write_text(TEMPLATE)
  yield folder
  path.unlink()


@pytest.fixture
def job(tmp_path, tiny):
  """A prompts file with five good lines; returns its path."""
  path = tmp_path / "in.jsonl"
  prompts = helpers.prompts_of(tiny.config, (3, 17, 9, 1, 30))
  write(
    path,
    [
      {"id": f"p{i}", "prompt_ids": p, "max_new_tokens": 5 + i, "seed": i}
      for i, p in enumerate(prompts)
    ],
  )
  return path


def write(path, lines):
  text = (json.dumps(x) if isinstance(x, dict) else x for x in lines)
  path.write_text("".join(f"{line}\n" for line in text))


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]
