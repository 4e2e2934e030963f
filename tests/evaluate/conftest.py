"""The command, called in this process."""

import pytest

from nemodiff_jax.cli import evaluate
from tests import helpers


def call(*flags):
  return helpers.run_command(evaluate.main, "evaluate", *flags)


@pytest.fixture
def command():
  return call
