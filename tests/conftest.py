"""Strict JAX settings for every test, and models small enough to reason on."""

import gc
import os
import signal
from pathlib import Path

# Programs run for milliseconds here and compile for seconds: LLVM need not try
# hard, nor MLIR for every fusion (which took 40 % of the time of a suite).
# Before JAX is imported; the commands that tests start do the same.
os.environ["XLA_FLAGS"] = (
  "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
  " --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
  " --xla_cpu_parallel_codegen_split_count=1 " + os.environ.get("XLA_FLAGS", "")
)

import jax
import pytest

from tests import helpers

# A suite that a shell put in the background ignores Ctrl-C, and so would the
# commands that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_num_cpu_devices", 8)
# Programs are traced of millions of small objects, few of them garbage.
gc.set_threshold(20_000, 20, 50)
# Workers and later runs share compiled programs.
_COMPILED = Path(__file__).parent.parent / ".pytest_cache" / "compiled"
jax.config.update("jax_compilation_cache_dir", str(_COMPILED))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
  """A process may map 65,530 pieces of memory, and a program takes hundreds.

  One that finds none left crashes, so programs go when there are many.
  """
  yield
  maps = Path("/proc/self/maps")
  if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def tiny() -> helpers.Tiny:
  """A random tiny model whose predictions are neither flat nor certain."""
  return helpers.make_tiny()


@pytest.fixture(scope="session")
def folder(tiny, tmp_path_factory):
  """The tiny model as a checkpoint folder with a LoRA and a tokenizer."""
  path = tmp_path_factory.mktemp("checkpoint")
  helpers.write_checkpoint(path, tiny, lora=True)
  helpers.write_tokenizer(path, tiny.config)
  return path
