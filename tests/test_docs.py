"""What the documents show is what the code does."""

import json
import re
from pathlib import Path

import pytest

from nemodiff_jax.cli import generate  # noqa: F401  (defines the flags)
from nemodiff_jax.decode.config import ROW_FIELDS

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_quickstart_notebook_runs():
  cells = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())["cells"]
  names: dict = {}
  for cell in cells:
    if cell["cell_type"] == "code":
      exec("".join(cell["source"]), names)


def test_readme_names_only_flags_that_exist():
  from absl import flags

  text = (ROOT / "README.md").read_text()
  for name in re.findall(r"(?<![\w-])--([a-z_]+)", text):
    assert name in flags.FLAGS or name == "help", name


def test_every_row_setting_is_documented():
  text = (ROOT / "docs" / "decoding.md").read_text()
  for name in ROW_FIELDS:
    assert name in text, name
