"""One small run that many tests look at."""

import pytest

from nemodiff_jax.cli import evaluate
from tests import helpers

QUESTIONS = 6


def call(*flags):
  return helpers.run_command(evaluate.main, "evaluate", *flags)


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
