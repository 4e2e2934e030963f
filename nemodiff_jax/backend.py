"""What JAX is told before it is used: where programs are kept, what to log."""

import logging
import os
from pathlib import Path

import jax


def prepare() -> None:
  """Keeps compiled programs on disk, and hides what this machine cannot use.

  The folder is that of JAX where JAX is told one (jax_compilation_cache_dir),
  else $XDG_CACHE_HOME/nemodiff_jax/compiled, in ~/.cache by default.
  JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
  """
  backends = logging.getLogger("jax._src.xla_bridge")
  if _concerns_this_machine not in backends.filters:
    backends.setLevel(logging.WARNING)
    backends.addFilter(_concerns_this_machine)
  if jax.config.jax_compilation_cache_dir is not None:
    return
  root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  folder = Path(root) / "nemodiff_jax" / "compiled"
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _concerns_this_machine(record: logging.LogRecord) -> bool:
  """Whether to show it: a CUDA plugin without a GPU only compiles for one."""
  gpu = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()
  return gpu or "xla_cuda" not in record.getMessage()
