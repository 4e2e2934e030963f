"""Which implementation of range attention serves a call, and what it says."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels import aot
from pallas_kernels.range_attention import (
  PAGE,
  config,
  dispatch,
  range_attention,
  reference,
)
from tests.pallas_kernels.test_range_attention import make

reason = aot.unavailable()
needs_compiler = pytest.mark.skipif(reason is not None, reason=str(reason))
needs_new_jax = pytest.mark.skipif(
  jax.__version_info__ < (0, 11), reason="Mosaic needs jax 0.11"
)
HEADS = PartitionSpec(None, None, "tensor")


@pytest.fixture
def gpu(monkeypatch):
  """Makes dispatch believe in a GPU of some compute capability."""

  def there(capability):
    monkeypatch.setattr(dispatch, "capability", lambda: capability)
    find = dispatch.importlib.util.find_spec
    monkeypatch.setattr(
      dispatch.importlib.util,
      "find_spec",
      lambda n: True if "triton" in n else find(n),
    )

  return there


def pick(name, heads=8, kv_heads=2, dim=128, keys=256, dtype=jnp.bfloat16, **k):
  q, kv = (1, 4, heads, dim), (1, keys, kv_heads, dim)
  return dispatch.resolve(name, q, kv, dtype, **k)


@needs_new_jax
@pytest.mark.parametrize(
  ("capability", "call", "chosen"),
  [
    (None, {}, "xla"),
    ("9.0", {}, "mosaic"),
    ("10.0", {}, "mosaic"),
    ("10.3", {}, "mosaic"),
    ("9.0", {"dtype": jnp.float32}, "xla"),
    ("9.0", {"starts": True}, "xla"),
    ("9.0", {"paged": True}, "mosaic"),
    ("8.0", {"paged": True}, "triton"),
    ("9.0", {"paged": True, "starts": True, "keys": 4096}, "xla"),
    ("9.0", {"dim": 32}, "triton"),
    ("9.0", {"dim": 80}, "xla"),
    ("9.0", {"heads": 32}, "triton"),  # Too many heads for one key head.
    ("8.0", {}, "triton"),
    ("8.9", {"dtype": jnp.float16}, "triton"),
    ("12.0", {}, "triton"),
    ("7.5", {}, "xla"),
    ("11.0", {}, "xla"),  # Newer than what the kernels are compiled for.
    ("13.0", {}, "xla"),
  ],
)
def test_none_picks_by_device_and_call(gpu, capability, call, chosen):
  gpu(capability)
  assert pick(None, **call) == chosen
  if chosen != "xla":
    assert pick(chosen, **call) == chosen
  assert pick("xla", **call) == "xla"


@needs_new_jax
@pytest.mark.parametrize(
  ("capability", "name", "call", "message"),
  [
    (None, "mosaic", {}, "needs an NVIDIA GPU, and JAX runs on 'cpu' here"),
    (None, "triton", {}, "needs an NVIDIA GPU, and JAX runs on 'cpu' here"),
    (
      "8.0", "mosaic", {},
      "needs compute capability 9.0 or 10.0 or 10.3, found 8.0",
    ),
    ("13.0", "mosaic", {}, "found 13.0"),
    ("13.0", "triton", {}, "not known to serve compute capability 13.0"),
    ("9.0", "mosaic", {"dtype": jnp.float32}, "bfloat16, got float32"),
    ("9.0", "mosaic", {"dim": 80}, "head dimension .* got 80"),
    ("9.0", "mosaic", {"heads": 32}, "query heads per key head .* got 16"),
    ("9.0", "mosaic", {"keys": 99}, "keys S should be a multiple of 8, got 99"),
    ("9.0", "mosaic", {"keys": 2**31}, "keys S should be at most .*got 2147"),
    ("9.0", "mosaic", {"starts": True}, "takes no k_start"),
    ("9.0", "tokamax", {"paged": True}, "take no table of pages"),
    ("7.5", "triton", {}, "needs compute capability 8.0, found 7.5"),
    ("8.0", "triton", {"dtype": jnp.float32}, "or float16, got float32"),
    ("8.0", "triton", {"dim": 80}, "head dimension .* got 80"),
    ("8.0", "triton", {"keys": 2**31}, "keys S should be at most .*got 2147"),
    ("8.0", "triton", {"starts": True}, "takes no k_start"),
  ],
)  # fmt: skip
def test_a_named_one_says_why_it_cannot(gpu, capability, name, call, message):
  gpu(capability)
  start = f"implementation='{name}' cannot be used: .*"
  with pytest.raises(NotImplementedError, match=start + message):
    pick(name, **call)


def test_an_old_jax_and_missing_packages_are_said(gpu, monkeypatch):
  gpu("9.0")
  monkeypatch.setattr(dispatch.jax, "__version_info__", (0, 10, 2))
  with pytest.raises(NotImplementedError, match=r"needs jax 0\.11"):
    pick("mosaic")
  monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(NotImplementedError, match="triton and jax-triton"):
    pick("triton")


@needs_new_jax
def test_a_choice_on_a_gpu_is_logged_once(gpu, caplog):
  dispatch._say.cache_clear()
  with caplog.at_level(logging.INFO):
    pick(None)  # Without a GPU there is nothing to tell.
    gpu("9.0")
    for _ in range(3):
      pick(None)
      pick(None, dim=80)
  assert [r.message for r in caplog.records if "attention" in r.message] == [
    "range attention by mosaic (compute capability 9.0)",
    "range attention by xla (mosaic: the head dimension should be one of (64,"
    " 128), got 80; triton: the head dimension should be one of (16, 32, 64,"
    " 128), got 80)",
  ]


@dataclasses.dataclass
class Device:
  """A GPU as JAX shows it."""

  core_count: object
  compute_capability: str = "9.0"


@needs_new_jax
def test_the_processors_are_those_of_the_device(gpu, monkeypatch):
  """An H20 has 78, an H200 132: the work is cut up for what is there."""
  chip = lambda: dispatch.forward("mosaic").keywords["chip"]
  monkeypatch.setattr(dispatch.jax, "devices", lambda: [Device(78)])
  assert pick(None) == "mosaic" and chip().processors == 78
  assert chip() == dataclasses.replace(config.HOPPER, processors=78)
  h200 = jax.sharding.AbstractDevice("NVIDIA H200", None, platform="gpu")
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=h200)
  with jax.sharding.use_abstract_mesh(mesh):  # Compiled for it, not here.
    assert chip() == config.HOPPER


@needs_new_jax
@pytest.mark.parametrize(
  ("device", "reason"),
  [
    (Device(None), "multiprocessors of the GPU cannot be read"),
    (Device(0), "multiprocessors of the GPU cannot be read"),
    (Device(200, "13.0"), "10.3, found 13.0; triton"),
  ],
)
def test_an_unknown_device_is_one_line_and_xla(
  device, reason, monkeypatch, caplog
):
  dispatch._say.cache_clear()
  monkeypatch.setattr(dispatch.jax, "devices", lambda: [device])
  monkeypatch.setattr(dispatch, "_TRITON_DIMS", ())
  with caplog.at_level(logging.INFO):
    assert [pick(None) for _ in range(3)] == ["xla"] * 3
  (line,) = [r.message for r in caplog.records if "attention" in r.message]
  assert line.startswith("range attention by xla (mosaic:") and reason in line


def test_a_kernel_is_differentiable_through_both_outputs(monkeypatch):
  """Its backward is XLA's, from the kernel's own out and lse."""
  q, k, v, k_end, _ = map(jnp.asarray, make((2, 7, 129, 6, 2, 8), 0))

  def loss(q, k, v):
    out, lse = range_attention(q, k, v, k_end)
    return (out * out).sum() + jnp.where(jnp.isneginf(lse), 0.0, lse).sum()

  want = jax.grad(loss, (0, 1, 2))(q, k, v)
  calls = []

  def kernel(q, k, v, k_end, table):
    assert table.tolist() == [[0], [1]]  # Each row is a page.
    calls.append(q.shape)
    return reference.range_attention(q, k, v, k_end, jnp.zeros_like(k_end))

  monkeypatch.setattr(dispatch, "resolve", lambda *_, **__: "mosaic")
  monkeypatch.setattr(dispatch, "forward", lambda name: kernel)
  got = jax.grad(loss, (0, 1, 2))(q, k, v)
  assert calls
  for a, b in zip(got, want, strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_kernel_gets_the_table_and_says_so_of_gradients(monkeypatch):
  pool = jnp.ones((7, PAGE, 1, 8))
  table, ends = jnp.asarray([[3, 1], [0, 7]]), jnp.ones((2, 3), jnp.int32)
  asked = []

  def kernel(q, k, v, k_end, given):
    np.testing.assert_array_equal(given, table)
    assert given.dtype == jnp.int32 and k.shape == pool.shape
    return q, q[..., 0]

  def resolve(name, q_shape, k_shape, dtype, **how):
    asked.append((k_shape, how))
    return "mosaic"

  monkeypatch.setattr(dispatch, "resolve", resolve)
  monkeypatch.setattr(dispatch, "forward", lambda name: kernel)
  q = jnp.ones((2, 3, 2, 8))
  attend = lambda q: range_attention(q, pool, pool, ends, table=table)[0].sum()
  attend(q)
  assert asked == [((2, 2 * PAGE, 1, 8), {"starts": False, "paged": True})]
  with pytest.raises(NotImplementedError, match="no gradient with a table"):
    jax.grad(attend)(q)


def shapes(b=1, t=32, s=4096, n=32, k=8, h=128, mesh=None):
  spec = None if mesh is None else NamedSharding(mesh, HEADS)
  low = lambda *size: jax.ShapeDtypeStruct(size, jnp.bfloat16, sharding=spec)
  ends = jax.ShapeDtypeStruct((b, t), jnp.int32)
  return low(b, t, n, h), low(b, s, k, h), low(b, s, k, h), ends


def over_heads(mesh, **how):
  """Range attention with the heads of a device on it."""
  specs = dict(in_specs=(HEADS, HEADS, HEADS, PartitionSpec()))
  return jax.shard_map(
    lambda *args: range_attention(*args, **how),
    mesh=mesh,
    out_specs=(HEADS, HEADS),
    check_vma=False,
    **specs,
  )


@needs_compiler
@pytest.mark.parametrize(
  ("chip", "call"), [("h200", "mosaic_gpu"), ("a100", "triton_kernel_call")]
)
def test_aot_mosaic_or_triton_by_the_named_chip(chip, call):
  text = aot.compile_for(chip, range_attention, *shapes()).as_text()
  assert f'custom_call_target="{call}' in text


@needs_compiler
def test_aot_mosaic_over_the_heads_of_two_chips():
  """No device sees the heads of the other: nothing is sent."""
  mesh = aot.make_mesh("h200", (2,), ("tensor",))
  done = aot.compile_for(
    "h200", over_heads(mesh), *shapes(mesh=mesh), mesh=mesh
  )
  text = done.as_text()
  assert 'custom_call_target="mosaic_gpu' in text
  assert not any(x in text for x in ("all-gather", "all-reduce", "all-to-all"))


def test_heads_over_devices_equal_one_device():
  mesh = jax.make_mesh((2,), ("tensor",), (jax.sharding.AxisType.Auto,))
  q, k, v, k_end, _ = map(jnp.asarray, make((2, 7, 129, 6, 2, 8), 0))
  want = range_attention(q, k, v, k_end)
  got = jax.jit(over_heads(mesh, implementation="xla"))(q, k, v, k_end)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
