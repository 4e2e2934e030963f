"""The GPU benchmarks run end to end at toy sizes, and compile where told."""

import os
import subprocess
import sys

import pytest

from pallas_kernels import aot

reason = aot.unavailable()
needs_compiler = pytest.mark.skipif(reason is not None, reason=str(reason))


def output(*command) -> str:
  done = subprocess.run(
    [sys.executable, "-m", *command],
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.mark.slow
def test_attention_benchmark_runs():
  lines = output("benchmarks.attention_gpu", "--toy").splitlines()
  assert lines[1].startswith("measured: copy ")  # The floors come first.
  rows = [line for line in lines if "| ours |" in line]
  assert len(rows) == 2


@pytest.mark.slow
def test_training_benchmark_runs():
  text = output(
    "benchmarks.train", "--part=mfu", "--size=tiny", "--timed_steps=1"
  )
  assert "ms a step" in text and "peak unknown" in text


@pytest.mark.slow
def test_decode_benchmark_runs():
  text = output("benchmarks.decode_gpu", "--size=tiny")
  assert text.splitlines()[1].startswith("measured: copy ")
  for what in (
    "ar pass", "ar loop", "linear_spec loop", "C = 8 (72 queries)",
    "C = 16 (272 queries)", "| linear_spec | 2 |",
  ):  # fmt: skip
    assert what in text


@needs_compiler
@pytest.mark.slow
def test_aot_decode_benchmark_compiles_without_a_gpu():
  text = output("benchmarks.decode_gpu", "--size=3b")
  assert text.startswith("no GPU: compiled ahead of time, not run")
  said = [line for line in text.splitlines() if "launch(es)" in line]
  assert len(said) == 10  # Five programs on two chips.
  assert all("per pass 1 launch(es)" in line for line in said)


@pytest.mark.slow
def test_roofline_prints_that_it_is_no_measurement():
  text = output("benchmarks.roofline")
  assert text.startswith("Predicted by a roofline, not measured.")
  assert "NVIDIA H200, 8b, batch 1" in text
