"""The suite of the Mosaic kernels fails where it should."""

import jax
import pytest

from benchmarks import mutations


def test_mosaic_mutations_fit_the_sources():
  assert not mutations.outdated()


@pytest.mark.slow
@pytest.mark.skipif(
  jax.__version_info__ < (0, 11),
  reason="the interpreter of Mosaic needs jax 0.11, so Python 3.12",
)
def test_mosaic_suite_catches_every_mutation(capsys):
  assert mutations.main() == 0, capsys.readouterr().out
