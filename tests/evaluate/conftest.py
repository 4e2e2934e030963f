"""One small run that many tests look at."""

import contextlib
import io

import pytest
from absl.testing import flagsaver

from nemodiff_jax.cli import evaluate
from nemodiff_jax.cli import main as process

QUESTIONS = 6


def call(*flags):
  """Runs the command in this process; returns (exit code, stdout, stderr)."""
  out, err = io.StringIO(), io.StringIO()
  with (
    flagsaver.flagsaver(),
    contextlib.redirect_stdout(out),
    contextlib.redirect_stderr(err),
    pytest.raises(SystemExit) as stop,
  ):
    process.run(evaluate.main, ["evaluate", *flags])
  return stop.value.code or 0, out.getvalue(), err.getvalue()


@pytest.fixture
def command():
  return call


EMBEDDED = (
  "--tasks=embedded", f"--limit={QUESTIONS}", "--traced=2",
  "--modes=ar,linear_spec,diffusion",
)  # fmt: skip


@pytest.fixture(scope="session")
def embedded_run(tmp_path_factory):
  """The folder of a run of the embedded checkpoint, and what it printed."""
  folder = tmp_path_factory.mktemp("evaluate") / "run"
  code, out, err = call(*EMBEDDED, f"--out={folder}", "--batch_size=4")
  assert code == 0, err
  return folder, out
