"""The tests fail where they should."""

import jax
import pytest

from benchmarks import mutations


@pytest.mark.parametrize("part", mutations.PARTS)
def test_mutations_fit_the_sources(part):
  assert not mutations.outdated(part)


@pytest.mark.slow
@pytest.mark.skipif(
  jax.__version_info__ < (0, 11),
  reason="the interpreter of Mosaic needs jax 0.11, so Python 3.12",
)
def test_mosaic_suite_catches_every_mutation(capsys):
  assert mutations.main("kernels") == 0, capsys.readouterr().out
