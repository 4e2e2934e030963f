"""Ray: where actors run, and what comes back from them."""

import contextlib
import dataclasses
import logging
import math
import os
import pickle
import signal
import socket
from collections.abc import Iterator, Sequence
from typing import Any

from nemodiff_jax.errors import UserError
from nemodiff_jax.fleet.source import Part
from nemodiff_jax.fleet.worker import Job, Report, Worker

_STORE = 100 * 2**20  # Bytes of a local object store; only reports go through.
_PASSED = "JAX_", "XLA_"  # Variables that actors get, on any machine.


@dataclasses.dataclass(frozen=True)
class Placement:
  """Actors, and what each has of a machine.

  Attributes:
    actors: how many.
    cpus: of each; a part of one, if they share it.
    gpus: of each; 0: it computes on the CPU.
  """

  actors: int
  cpus: float
  gpus: int


def check_installed() -> None:
  """Raises a UserError where Ray Data cannot be imported."""
  os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # No telemetry.
  try:
    import ray.data  # noqa: F401
  except ImportError as e:
    raise UserError(
      f"nemodiff-batch needs the extra [ray] ({e.name} is not installed): pip"
      " install 'nemodiff-jax[ray]'"
    ) from e


@contextlib.contextmanager
def connected(address: str | None, debug: bool) -> Iterator[None]:
  """Connects to a cluster, or starts one on this machine, until the end.

  Args:
    address: of the cluster; None: this machine alone.
    debug: show what the actors print.

  Raises:
    UserError: no cluster there.
  """
  import ray
  import ray.data

  how: dict[str, Any] = {}
  if address is not None:
    _knock(address)
  else:
    how = {"include_dashboard": False, "object_store_memory": _STORE}
  on_term = signal.getsignal(signal.SIGTERM)
  try:
    ray.init(
      address or "local",
      log_to_driver=debug,
      logging_level=logging.ERROR,
      **how,
    )
  except Exception as e:  # Of any type, also where this machine is too busy.
    first = (str(e).strip() or type(e).__name__).splitlines()[0]
    if address is None:
      raise UserError(f"Ray does not start on this machine ({first})") from e
    raise UserError(
      f"ray_address {address!r}: no cluster there ({first})"
    ) from e
  finally:
    with contextlib.suppress(ValueError):  # Not in the main thread.
      signal.signal(signal.SIGTERM, on_term)
  logging.getLogger("ray.data").setLevel(logging.ERROR)
  try:
    yield
  finally:
    ray.shutdown()


def _knock(address: str) -> None:
  """Raises a UserError where nobody listens; Ray would try for minutes."""
  host, _, port = address.rpartition(":")
  if not port.isdecimal():
    return  # It is no host:port, so Ray knows at once.
  try:
    socket.create_connection((host, int(port)), timeout=10).close()
  except (OSError, OverflowError) as e:
    raise UserError(f"ray_address {address!r}: no cluster there ({e}).") from e


def place(actors: int | None, share: int, most: int) -> Placement:
  """Where actors of a job go: one per GPU; without GPUs, one per machine.

  Args:
    actors: how many are asked for; None: as many as there are devices.
    share: GPUs that share a model.
    most: actors that have something to do.

  Raises:
    UserError: more than the cluster has room for.
  """
  import ray

  nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
  return divide(nodes, actors, share, most)


def divide(
  nodes: Sequence[dict[str, float]], actors: int | None, share: int, most: int
) -> Placement:
  """As `place`, on machines of these resources."""
  slots = sum(int(n.get("GPU", 0)) // share for n in nodes)
  if slots:
    if actors is not None and actors > slots:
      raise UserError(
        f"actors should be at most {slots}, the cluster's GPUs by {share}, got"
        f" {actors}."
      )
    return Placement(min(actors or slots, most), 0, share)
  cpus = [n["CPU"] for n in nodes if n.get("CPU", 0) >= 1]
  if not cpus:
    raise UserError("the cluster has neither a GPU nor a CPU to spare.")
  wanted = min(actors or len(cpus), most)
  each = min(cpus) / math.ceil(wanted / len(cpus))
  # In whole CPUs or, where many share one, in parts that Ray can count.
  return Placement(wanted, int(each) or math.floor(each * 1000) / 1000, 0)


def run(parts: Sequence[Part], job: Job, place: Placement) -> Iterator[Report]:
  """Serves parts in actors; yields what came of each as it is done."""
  import ray.data
  from ray.data import ActorPoolStrategy

  context = ray.data.DataContext.get_current()
  context.enable_progress_bars = False
  context.print_on_execution_start = False
  items = [{"part": pickle.dumps(part)} for part in parts]
  dataset = ray.data.from_items(items, override_num_blocks=len(items))
  reports = dataset.map_batches(
    Worker,
    fn_constructor_args=[job],
    batch_size=1,
    batch_format="numpy",
    compute=ActorPoolStrategy(
      size=place.actors,
      max_tasks_in_flight_per_actor=1,  # What a lost actor had is done again.
    ),
    num_cpus=place.cpus,
    num_gpus=place.gpus,
    runtime_env={"env_vars": environment(place)},
  )
  for row in reports.iter_rows():
    yield Report(**row)


def environment(place: Placement) -> dict[str, str]:
  """Variables of actors: what JAX heeds of this process, and how many threads.

  XLA would take a thread for each CPU of the machine, in each actor.
  """
  given = {k: v for k, v in os.environ.items() if k.startswith(_PASSED)}
  if place.gpus:
    return given
  threads = str(max(1, int(place.cpus)))
  return given | {"JAX_PLATFORMS": "cpu", "NPROC": threads}
