"""Calls between the event loop and the engine's thread: readers, faults."""

import asyncio

import pytest

pytest.importorskip("fastapi", reason="needs the extra [serve]")

from nemodiff_jax.errors import UserError
from nemodiff_jax.serve import async_engine
from nemodiff_jax.serve.async_engine import AsyncEngine
from nemodiff_jax.serve.contract import Job
from nemodiff_jax.serve.errors import Refusal
from nemodiff_jax.serve.metrics import Metrics
from tests.serve import fakes


def job(prompt=(97,)):
  from nemodiff_jax.decode.config import RowSettings

  return Job(list(prompt), RowSettings(max_new_tokens=1500))


def test_a_reader_that_falls_behind_is_cancelled_before_it_holds_memory():
  async def main():
    engine = fakes.FakeEngine(lambda job: [97] * 10**5, per_step=64)
    runner = AsyncEngine(engine, Metrics())
    asked = job()
    object.__setattr__(asked.row, "max_new_tokens", 10**5)
    stream = await runner.submit([asked])
    while stream._left:
      await asyncio.sleep(0.001)
    assert len(stream._events) == 1  # What it held is gone.
    await runner.call(lambda: None)
    assert not engine.busy()
    with pytest.raises(Refusal, match="too slowly"):
      async for _ in stream.events():
        pass
    runner.stop()

  asyncio.run(asyncio.wait_for(main(), 60))


def test_a_step_that_fails_ends_every_call_and_the_health():
  async def main():
    # Slow, so that no job has ended before the fault.
    engine = fakes.Slow(lambda job: [97] * 1000, per_step=1)
    runner = AsyncEngine(engine, Metrics())
    streams = [await runner.submit([job()]) for _ in range(2)]
    engine.fault = RuntimeError("boom")
    for stream in streams:
      with pytest.raises(Refusal, match="engine failed") as error:
        async for _ in stream.events():
          pass
      assert error.value.status == 500
    with pytest.raises(Refusal) as error:
      await runner.submit([job()])
    assert error.value.status == 503
    runner.stop()

  asyncio.run(asyncio.wait_for(main(), 60))


def test_a_job_that_is_refused_takes_its_call_with_it():
  class Picky(fakes.FakeEngine):
    def submit(self, job):
      if job.prompt == [98]:
        raise UserError("not this one.")
      return super().submit(job)

  async def main():
    engine = Picky(lambda job: [97] * 1000)
    runner = AsyncEngine(engine, Metrics())
    with pytest.raises(UserError, match="not this one"):
      await runner.submit([job(), job([98])])
    assert not engine.busy() and runner.running == 0
    runner.stop()

  asyncio.run(asyncio.wait_for(main(), 60))


def test_draining_lets_jobs_end_then_cancels():
  async def main():
    engine = fakes.Slow(lambda job: [97] * (4 if job.prompt == [98] else 1500))
    runner = AsyncEngine(engine, Metrics())
    short, long = [await runner.submit([job([i])]) for i in (98, 99)]
    await runner.drain(0.3)
    tokens = [i async for _, e in short.events() for i in e.token_ids]
    assert tokens == [97] * 4
    with pytest.raises(Refusal, match="ended"):
      async for _ in long.events():
        pass
    assert not engine.busy()
    runner.stop()

  asyncio.run(asyncio.wait_for(main(), 60))


def test_the_bound_of_a_queue_is_a_number_of_tokens():
  assert 0 < async_engine.MAX_HELD <= 10**5
