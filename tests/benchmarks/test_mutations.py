"""The tests fail where they should."""

import shutil

import jax
import pytest

from benchmarks import mutations
from benchmarks.mutants import Mutation


@pytest.mark.parametrize("part", mutations.PARTS)
def test_mutations_fit_the_sources(part):
  assert not mutations.outdated(part)


@pytest.mark.parametrize(
  ("second", "code", "said"),
  [((True, ""), 1, "SURVIVES"), ((False, "hangs"), 0, "caught: hangs")],
)
def test_what_hangs_is_tried_again(monkeypatch, capsys, second, code, said):
  """A machine that stands still for a while has caught nothing."""
  one = Mutation("a cut", "pyproject.toml", "[build-system]\n", "", ("x.py",))
  results = iter([(True, ""), (False, "hangs"), second])
  copy = lambda to: shutil.copy(mutations.ROOT / one.file, to / one.file)
  monkeypatch.setattr(mutations, "mutations", lambda part: (one,))
  monkeypatch.setattr(mutations, "copy_project", copy)
  monkeypatch.setattr(mutations, "run", lambda *_: next(results))
  assert mutations.main("train") == code
  assert said in capsys.readouterr().out and not list(results)


@pytest.mark.slow
@pytest.mark.skipif(
  jax.__version_info__ < (0, 11),
  reason="the interpreter of Mosaic needs jax 0.11, so Python 3.12",
)
def test_mosaic_suite_catches_every_mutation(capsys):
  assert mutations.main("kernels") == 0, capsys.readouterr().out
