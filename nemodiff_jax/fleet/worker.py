"""What runs in an actor: a part of the input in, a part file out.

Nothing here needs Ray; JAX is imported where the actor is, with its devices.
"""

import dataclasses
import pickle
import socket
import time
import traceback
from typing import TYPE_CHECKING, Any

from nemodiff_jax.errors import UserError
from nemodiff_jax.fleet import folder, source

if TYPE_CHECKING:
  from nemodiff_jax.fleet.decoding import Decoding

_TRIES = 5  # Of a part that its process dies of.


@dataclasses.dataclass(frozen=True)
class Job:
  """What all actors of a job know.

  Attributes:
    argv: flags of the command that say how to decode.
    directory: that relative paths in them start from.
    output: folder of the part files.
    form: of the part files.
    whole: ids are whole numbers that fit in 64 bits.
    requests: there are lines in the form of OpenAI's batch files.
  """

  argv: tuple[str, ...]
  directory: str
  output: str
  form: str
  whole: bool
  requests: bool


@dataclasses.dataclass(frozen=True)
class Report:
  """What came of a part.

  Attributes:
    number: of the part.
    lines: that it has.
    errors: lines that could not be served.
    tokens: of all outputs.
    passes: of all outputs.
    host: where it was decoded.
    opened: seconds that reading the model took, where this part was the first.
    failure: why the job cannot go on; empty: it can.
  """

  number: int
  lines: int = 0
  errors: int = 0
  tokens: int = 0
  passes: int = 0
  host: str = ""
  opened: float = 0.0
  failure: str = ""


class Worker:
  """An actor, which reads the model with its first part and keeps it.

  Not when it is made: an actor that dies of that is made again for ever, while
  the tries of a part are counted.
  """

  def __init__(self, job: Job):
    """Reads nothing yet."""
    self._job = job
    self._decoding: Decoding | None = None

  def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
    """Serves pickled parts, as Ray Data has them; a row for each."""
    reports = [self.serve(pickle.loads(part)) for part in batch["part"]]
    return {
      field.name: [getattr(report, field.name) for report in reports]
      for field in dataclasses.fields(Report)
    }

  def serve(self, part: source.Part) -> Report:
    """Writes the file of a part; a failure is reported, never raised.

    Ray Data would do again what raises.
    """
    try:
      report = self._serve(part)
    except (UserError, OSError) as e:
      report = Report(part.number, failure=str(e))
    except Exception as e:
      at = traceback.extract_tb(e.__traceback__)[-1]
      failure = f"{type(e).__name__} in {at.name}, line {at.lineno}: {e}"
      report = Report(part.number, failure=failure)
    return dataclasses.replace(
      report,
      host=socket.gethostname(),
      failure=" ".join(report.failure.split()),
    )

  def _serve(self, part: source.Part) -> Report:
    job, opened = self._job, 0.0
    tries = folder.Tries(job.output, part.number, _TRIES)
    tries.begin()
    if self._decoding is None:
      from nemodiff_jax.fleet.decoding import open_decoding

      start = time.monotonic()
      self._decoding = open_decoding(job.argv, job.directory, job.requests)
      opened = time.monotonic() - start
    told = self._decoding.tell(part)
    folder.write_part(job.output, part.number, job.form, told.rows, job.whole)
    tries.end()
    return Report(
      part.number,
      len(told.rows),
      told.errors,
      told.tokens,
      told.passes,
      opened=opened,
    )
