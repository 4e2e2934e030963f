r"""Decodes a JSON Lines or Parquet job on many devices, by Ray Data.

    python -m nemodiff_jax.cli.batch --checkpoint=DIR \
        --prompts_file=in.jsonl --output=out
    python -m nemodiff_jax.cli.batch --checkpoint=DIR --ray_address=auto \
        --prompts_file=questions/ --output=answers --actors=16

Lines and their fields are those of nemodiff_jax.cli.generate, as are the
results; in Parquet a field is a column, and null is absent. The output is a
folder of part files, each whole or not there, and _manifest.json with the
settings of the job: the same command goes on where a stopped one was. A line
that cannot be served gives a row with an error, and exit code 3. Needs the
extra [ray]; without --ray_address it uses this machine. See docs/jobs.md.
"""

import os
import sys
from typing import Any

from absl import flags

from nemodiff_jax.cli import flags as shared
from nemodiff_jax.cli import job_flags
from nemodiff_jax.cli import main as process
from nemodiff_jax.cli.progress import Progress
from nemodiff_jax.errors import UserError
from nemodiff_jax.fleet import cluster, folder, source
from nemodiff_jax.fleet.worker import Job, Report

_OUTPUT_FORMAT = flags.DEFINE_enum(
  "output_format",
  None,
  (folder.JSONL, folder.PARQUET),
  "Of the part files. Default: that of the input.",
)
_ROWS_PER_PART = flags.DEFINE_integer(
  "rows_per_part",
  256,
  "Lines that one actor decodes for one part file; what a lost machine loses.",
)
_ACTORS = flags.DEFINE_integer(
  "actors",
  None,
  "Processes that hold a model. Default: one per GPU (with --mesh, per its"
  " GPUs); on a cluster without GPUs, one per machine.",
)
_RAY_ADDRESS = flags.DEFINE_string(
  "ray_address",
  None,
  "Of a Ray cluster: auto, or host:port. Default: this machine alone.",
)
flags.adopt_module_key_flags(job_flags)
flags.adopt_module_key_flags(shared)


def main() -> int:
  """Runs the command; returns the exit code."""
  cluster.check_installed()
  prompts, output = job_flags.PROMPTS_FILE.value, job_flags.OUTPUT.value
  if prompts is None or output is None:
    raise UserError("expected --prompts_file and --output.")
  size = _at_least_1(_ROWS_PER_PART)
  actors = None if _ACTORS.value is None else _at_least_1(_ACTORS)
  opened = shared.checkpoint()
  row, config = shared.row_settings(opened), shared.run_config(opened.config)
  shared.batch_size(), shared.max_length()  # Refused before much is read.
  found = source.scan(prompts, size)
  form = _form(found)
  with cluster.connected(_RAY_ADDRESS.value, shared.DEBUG.value):
    place = cluster.place(actors, _share(), max(1, len(found.parts)))
    # As the actors' devices have it, not this process.
    dtype = shared.DTYPE.value or ("bfloat16" if place.gpus else "float32")
    flags.FLAGS["dtype"].parse(dtype)
    settings = shared.deciding(opened, config, row) | {
      "max_length": shared.max_length(),
      "prompts": found.digest,
      "rows_per_part": size,
      "output_format": form,
    }
    with folder.Folder(output, settings) as held:
      job = Job(
        argv=_given(),
        directory=os.getcwd(),
        output=held.path,
        form=form,
        whole=found.whole,
        requests=found.requests is not None,
      )
      return _run(found, held, job, place)


def _run(
  found: source.Source,
  held: folder.Folder,
  job: Job,
  place: cluster.Placement,
) -> int:
  """Serves the parts that are not done; returns the exit code, 0 or 3."""
  left = [p for p in found.parts if p.number not in held.done]
  before = sum(held.errors(number, job.form) for number in held.done)
  if held.done:
    print(
      f"{len(held.done)} parts done before, {len(left)} to do", file=sys.stderr
    )
  lines = sum(part.lines for part in left)
  progress = Progress(lines)
  failed = 0
  try:
    with progress:
      for report in cluster.run(left, job, place) if left else ():
        _check(report, job)
        failed += report.errors
        progress.add(report.tokens, report.passes, report.lines)
  except (KeyboardInterrupt, SystemExit):
    print("the same command goes on from here", file=sys.stderr)
    raise
  return progress.end(failed, found.lines, before)


def _check(report: Report, job: Job) -> None:
  """Tells of an actor that has begun.

  Raises:
    UserError: the job cannot go on, or the part is not where it should be.
  """
  if report.failure:
    raise UserError(
      f"part {report.number} on {report.host}: {report.failure} (What is done is"
      " kept: the same command goes on.)"
    )
  path = folder.part_path(job.output, report.number, job.form)
  if not os.path.exists(path):
    raise UserError(
      f"part {report.number}, written on {report.host}, is not in {job.output}"
      " here; name a folder that all machines share."
    )
  if report.opened:
    print(
      f"an actor on {report.host} has read the model in {report.opened:.1f} s",
      file=sys.stderr,
    )


def _form(found: source.Source) -> str:
  """The form of the part files."""
  parquet = any(p.file.endswith(source.PARQUET) for p in found.parts)
  form = _OUTPUT_FORMAT.value or (folder.PARQUET if parquet else folder.JSONL)
  if form == folder.PARQUET and found.requests is not None:
    raise UserError(
      f"line {found.requests} has the form of OpenAI's batch files, whose answers"
      " are JSON Lines; use --output_format=jsonl."
    )
  return form


def _share() -> int:
  """GPUs of an actor, by --mesh."""
  _, _, size = (shared.MESH.value or "tensor:1").partition(":")
  return int(size) if size.isdecimal() and int(size) else 1


def _at_least_1(flag: Any) -> int:
  if flag.value < 1:
    raise UserError(f"{flag.name} should be at least 1, got {flag.value}.")
  return flag.value


def _given() -> tuple[str, ...]:
  """Flags that say how to decode, as they were given."""
  argv = []
  for flag in flags.FLAGS.get_flags_for_module(shared):
    if flag.present and flag.value is not None:
      values = flag.value if isinstance(flag.value, list) else [flag.value]
      argv += [f"--{flag.name}={value}" for value in values]
  return tuple(argv)


def console() -> None:
  """Entry point of the installed command."""
  process.console(main)


if __name__ == "__main__":
  console()
