"""What the documents show is what the code does."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nemodiff_jax as nd
from nemodiff_jax.decode.config import ROW_FIELDS
from train import arithmetic

ROOT = Path(__file__).parent.parent


def test_demo_runs_on_the_embedded_checkpoint():
  """Its questions are held out, and the exact modes say what ar says."""
  code = (
    "from nemodiff_jax.cli import demo\n"
    "from train import arithmetic\n"
    "held = arithmetic.held_out('legs', 500)\n"
    "assert {*demo.HELD_OUT} <= {q for q, *_ in held}\n"
    "demo.console()\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  rows = {
    line.split()[0]: line.split()
    for line in done.stdout.splitlines()
    if line.endswith(("yes", "no"))
  }
  assert list(rows) == ["ar", "diffusion", "linear_spec", "quadratic_spec"]
  for mode in ("linear_spec", "quadratic_spec"):
    assert rows[mode][-1] == "yes" and float(rows[mode][3]) > 3
  assert done.stdout.count("The answer is 68.") >= 3


@pytest.mark.slow
def test_embedded_checkpoint_is_small_and_as_good_as_its_card():
  folder = ROOT / "nemodiff_jax" / "assets" / "embedded"
  assert sum(p.stat().st_size for p in folder.rglob("*")) < 8 * 2**20
  model = nd.load()
  for family in arithmetic.FAMILIES:
    examples = arithmetic.held_out(family, 8)
    prompts = [[{"role": "user", "content": q}] for q, *_ in examples]
    ar, spec, quick = (
      nd.generate(model, prompts, mode=m, batch_size=8)
      for m in ("ar", "linear_spec", "diffusion")
    )
    ends = [f"The answer is {a}." for *_, a in examples]
    right = lambda outs, ends=ends: sum(
      o.text.endswith(e) for o, e in zip(outs, ends, strict=True)
    )
    speed = lambda outs: (
      sum(o.completion_tokens for o in outs) / sum(o.nfe for o in outs)
    )
    assert right(ar) >= 7 and right(quick) >= 6
    assert [o.token_ids for o in spec] == [o.token_ids for o in ar]
    assert speed(spec) >= 5 and speed(quick) >= 3


@pytest.mark.slow
def test_quickstart_notebook_runs():
  cells = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())["cells"]
  names: dict = {}
  for cell in cells:
    if cell["cell_type"] == "code":
      exec("".join(cell["source"]), names)


def test_readme_names_only_flags_that_exist():
  defined = {"help"}
  for top in ("nemodiff_jax/cli", "checkpoints_convert", "train"):
    for source in (ROOT / top).glob("*.py"):
      defined |= set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source.read_text()))
  text = (ROOT / "README.md").read_text()
  for name in re.findall(r"(?<![\w-])--([a-z_]+)(?![\w-])", text):
    assert name in defined, name


def test_every_row_setting_is_documented():
  text = (ROOT / "docs" / "decoding.md").read_text()
  for name in ROW_FIELDS:
    assert name in text, name
