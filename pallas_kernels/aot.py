"""Compiles for an NVIDIA GPU on a machine that has none.

The CUDA plugin of JAX compiles for any chip that is described to it, so shared
memory, spills, copies, temporary memory and CUDA graphs can be checked on a
CPU. Nothing runs, and nothing is autotuned: the choice between GEMM backends
and tiles can differ on the device.

    pip install -e '.[aot]'        # Linux, Python 3.12; brings ptxas as well
    JAX_PLATFORMS=cpu python ...
"""

import contextlib
import functools
import importlib.util
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pallas_kernels.chips import CHIPS, Chip


def unavailable() -> str | None:
  """Why nothing can be compiled for a GPU here; None: it can."""
  if jax.__version_info__ < (0, 11):
    return f"needs jax 0.11 (Python 3.12), found jax {jax.__version__}"
  plugins = ("jax_plugins", "jax_plugins.xla_cuda13")
  if not all(importlib.util.find_spec(p) for p in plugins):
    return "needs the CUDA plugin of JAX: pip install 'nemodiff-jax[aot]'"
  try:
    _topology("h200", 1)
  except NotImplementedError:  # The plugin took itself out: no driver here.
    return "needs JAX_PLATFORMS=cpu set before jax is imported"
  return None


def make_mesh(
  chip: str,
  shape: tuple[int, ...] = (1,),
  names: tuple[str, ...] = ("x",),
) -> Mesh:
  """A mesh of chips that are not there.

  Args:
    chip: one of CHIPS.
    shape: chips along each axis, all in one host.
    names: of the axes.

  Raises:
    ValueError: an unknown chip.
    RuntimeError: this machine cannot compile for a GPU.
  """
  if chip not in CHIPS:
    raise ValueError(f"chip should be one of {tuple(CHIPS)}, got {chip!r}.")
  reason = unavailable()
  if reason is not None:
    raise RuntimeError(f"compiling for {CHIPS[chip].name} {reason}.")
  return topologies.make_mesh(_topology(chip, math.prod(shape)), shape, names)


def compile_for(
  chip: str,
  f: Callable,
  *args: Any,
  mesh: Mesh | None = None,
  compiler_options: dict[str, Any] | None = None,
  **jit: Any,
) -> jax.stages.Compiled:
  """Compiles f(*args) for a chip.

  Args:
    chip: one of CHIPS.
    f: what to compile; jitted already, or jitted here.
    *args: arrays or ShapeDtypeStructs; one without a sharding is replicated.
    mesh: of `make_mesh`, for more than one chip.
    compiler_options: XLA's, such as xla_dump_to.
    **jit: options of jax.jit, such as donate_argnums.

  Raises:
    ValueError: an unknown chip.
    RuntimeError: this machine cannot compile for a GPU.
  """
  mesh = make_mesh(chip) if mesh is None else mesh
  everywhere = NamedSharding(mesh, PartitionSpec())

  def placed(x):
    if not hasattr(x, "shape"):
      return x
    given = getattr(x, "sharding", None)
    sharding = given if isinstance(given, NamedSharding) else everywhere
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  args = jax.tree.map(placed, args)
  program: Any = f if hasattr(f, "lower") else jax.jit(f, **jit)
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    lowered = program.lower(*args)
  with _nothing_kept():
    return lowered.compile(compiler_options=compiler_options)


@functools.cache
def _topology(chip: str, count: int) -> topologies.TopologyDescription:
  return topologies.get_topology_desc(
    platform="cuda",
    target_config=_target(CHIPS[chip]),
    topology=f"1x1x{count}",
  )


@contextlib.contextmanager
def _nothing_kept() -> Iterator[None]:
  """Keeps programs out of the compilation cache, which cannot load them."""
  name = "jax_persistent_cache_min_compile_time_secs"
  before = getattr(jax.config, name)
  jax.config.update(name, float("inf"))
  try:
    yield
  finally:
    jax.config.update(name, before)


def _target(chip: Chip) -> str:
  """XLA's description of a chip, a GpuTargetConfigProto as text.

  ACCELERATED_FEATURES turns sm_90 into sm_90a, the form that has wgmma.
  """
  major, minor = chip.capability
  extension = "feature_extension: ACCELERATED_FEATURES" if major > 8 else ""
  return f"""
    platform_name: "CUDA"
    device_description_str: "{chip.name}"
    dnn_version_info {{ major: 9 minor: 12 }}
    gpu_device_info {{
      name: "{chip.name}"
      device_vendor: "NVIDIA Corporation"
      cuda_compute_capability {{ major: {major} minor: {minor} {extension} }}
      core_count: {chip.cores}
      clock_rate_ghz: {chip.clock}
      memory_bandwidth: {chip.bandwidth}
      device_memory_size: {chip.memory}
      l2_cache_size: {chip.l2}
      shared_memory_per_core: {chip.shared}
      shared_memory_per_block_optin: {chip.shared - 1024}
      shared_memory_per_block: 49152
      registers_per_core_limit: 65536
      registers_per_block_limit: 65536
      threads_per_core_limit: 2048
      threads_per_block_limit: 1024
      threads_per_warp: 32
      fpus_per_core: 128
      block_dim_limit_x: 2147483647
      block_dim_limit_y: 65535
      block_dim_limit_z: 65535
      thread_dim_limit_x: 1024
      thread_dim_limit_y: 1024
      thread_dim_limit_z: 64
      device_address_bits: 64
      driver_version: "13.0.0"
      runtime_version: "13.0.0"
      compile_time_toolkit_version: "13.0.0"
      dnn_version: "9.12.0"
    }}"""
