"""The interpreter of Mosaic with rules of the chip that it lacks (jax 0.11.2).

docs/kernels.md lists where the two differ, and what else covers it.
"""

import math
import threading

import jax
import numpy as np
from jax._src.pallas.mosaic.interpret import utils
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks as callbacks
from jax._src.pallas.mosaic_gpu.interpret import shared_memory

_plain = threading.local()


def checked_wgmma(original):
  """Looks for races where wgmma reads shared memory."""

  def wgmma(**given):
    memory, thread = callbacks._get_shared_memory(), given["thread"]
    with memory.lock:
      at = memory.thread_to_vc_position(thread)
      memory.clocks[thread].inc(at)
      clock = memory.clocks[thread].copy().async_smem_clock
    for name in "ab":
      key = callbacks.HostAllocationKey.from_array(
        given[f"{name}_allocation_key_as_array"]
      )
      at = callbacks._remove_noop_transforms(given[f"{name}_transforms"])
      access = memory.access(key, jax.tree.map(int, at))
      callbacks.get_races().check_read(
        thread, clock, key, access, given["source_info"]
      )
    return original(**given)

  return wgmma


def marked_store(original):
  """Tells `flat_store` whether shared memory has tiles or a swizzle."""

  def copy_smem_to_gmem(**given):
    _plain.now = not any(
      isinstance(t, shared_memory.LAYOUT_TRANSFORMS)
      for t in given["src_transforms"]
    )
    return original(**given)

  return copy_smem_to_gmem


def runs(place, shape) -> list[tuple] | None:
  """What a store of one run of bytes writes, as slices within rows.

  Args:
    place: per axis of the array an index or a slice.
    shape: of the array.

  Returns:
    The pieces in order, cut at the end of the array and nowhere else; None
    where the place is no single run, so that it takes a tensor map.
  """
  low = [x if isinstance(x, int) else x.start for x in place]
  size = [1 if isinstance(x, int) else x.stop - x.start for x in place]
  outer = next((i for i, n in enumerate(size) if n > 1), len(size) - 1)
  if size[outer + 1 :] != list(shape[outer + 1 :]):
    return None
  at, pieces = int(np.dot(low, _strides(shape))), []
  end = min(at + math.prod(size), math.prod(shape))
  while at < end:
    *lead, column = (int(i) for i in np.unravel_index(at, shape))
    more = min(end - at, shape[-1] - column)
    pieces.append(
      (*(slice(i, i + 1) for i in lead), slice(column, column + more))
    )
    at += more
  return pieces


def _strides(shape) -> list[int]:
  return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


def flat_store(original):
  """A plain copy to global memory is one run of bytes: no axis clips it."""

  def call(task, tma_thread_id):
    memory = callbacks._get_shared_memory()
    shape = memory.buffer_shape_and_dtype(task.dst_allocation_key).shape
    pieces = runs(task.dst_access.range, shape) if _plain.now else None
    if pieces is None:
      return original(task, tma_thread_id)
    task.pre_read(tma_thread_id, memory)
    values, _, _ = memory.get_buffer_content(
      task.src_allocation_key, task.src_access, task.thread,
      logging_info=task.logging_info,
    )  # fmt: skip
    values, at = np.asarray(values).reshape(-1), 0
    for piece in pieces:
      task.dst_access = utils.Access(piece)
      task.post_read(tma_thread_id, memory)  # Notes a write, for races.
      size = tuple(x.stop - x.start for x in piece)
      memory.store_buffer_content(
        task.dst_allocation_key, task.dst_access,
        values[at : at + size[-1]].reshape(size), task.thread,
        logging_info=task.logging_info,
      )  # fmt: skip
      at += size[-1]
    task.post_write(tma_thread_id, memory)

  return call


def patch(monkeypatch) -> list:
  """Gives the interpreter the rules of the chip until the test is over.

  Returns:
    What is known of the races of each kernel that then runs. The interpreter
    itself keeps those of the last one only.
  """
  for name, made in (
    ("wgmma", checked_wgmma),
    ("copy_smem_to_gmem", marked_store),
  ):
    original = getattr(callbacks, name)
    monkeypatch.setattr(callbacks, name, made(original))
  task = callbacks.AsyncCopySmemToGmemTask
  monkeypatch.setattr(task, "__call__", flat_store(task.__call__))
  states, begin = [], callbacks.GPURaceDetectionState

  def kept(**given):
    states.append(begin(**given))
    return states[-1]

  monkeypatch.setattr(callbacks, "GPURaceDetectionState", kept)
  return states
