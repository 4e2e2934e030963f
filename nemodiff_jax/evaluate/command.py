"""What the command does, from settings to the folder of a run."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nemodiff_jax import api
from nemodiff_jax.decode.config import RowSettings
from nemodiff_jax.errors import UserError, nearest
from nemodiff_jax.evaluate import (
  environment,
  lm_eval_tasks,
  packaged,
  report,
  sandbox,
  speed_of_light,
  tasks,
)
from nemodiff_jax.evaluate import run as runs
from nemodiff_jax.evaluate.record import Record, write_json
from nemodiff_jax.evaluate.results import table, text_table
from nemodiff_jax.evaluate.sweep import label, sweep
from nemodiff_jax.io.checkpoint import Checkpoint


@dataclasses.dataclass(frozen=True)
class Request:
  """What the flags of cli.evaluate say; see its --help."""

  opened: Checkpoint
  load: Callable[[], api.Model]
  out: Path
  tasks: Sequence[str]
  modes: Sequence[str]
  thresholds: Sequence[float]
  steps: Sequence[int]
  block_lengths: Sequence[int]
  row: RowSettings
  own_limit: bool
  batch_size: int
  enable_thinking: bool | None
  limit: int | None
  num_fewshot: int | None
  chat: bool
  unsafe_code: bool
  include_path: str | None
  traced: int
  speed_of_light: bool
  lora: str | None
  dtype: str | None
  quantize: str
  attention: str
  mesh: str | None


def evaluate(request: Request, say: Callable[[str], None]) -> int:
  """Runs or goes on with a run; prints its table. Returns 0."""
  r = request
  options = tasks.Options(
    r.limit, r.num_fewshot or 0, r.chat, not r.unsafe_code
  )
  foreign = [n for n in r.tasks if n.startswith(lm_eval_tasks.PREFIX)]
  harness = None
  if foreign:
    harness = lm_eval_tasks.Tasks(r.include_path)
    harness.check(foreign)
  asked = [open_task(n, options) for n in r.tasks if n not in foreign]
  if any(t.runs_code for t in asked):
    sandbox.check(r.unsafe_code)
  settings, skipped = sweep(
    r.opened.config, r.modes, r.thresholds, r.steps, r.block_lengths
  )
  for s in skipped:
    say(f"skipped {s.setting}: {s.why}")
  planned = [(t, runs.row_for(t, r.row, r.own_limit)) for t in asked]
  variables = {}
  if r.enable_thinking is not None:
    variables["enable_thinking"] = r.enable_thinking
  plan = runs.Plan(planned, settings, r.batch_size, variables)
  made = {"date": time.strftime("%Y-%m-%d"), "batch_size": r.batch_size}
  record = Record(r.out, describe(request, plan, foreign), made)
  model = r.load()
  skipped += runs.run(model, plan, record, say)
  if harness is not None:
    skipped += lm_eval_tasks.run(
      harness, foreign, model, settings, options, r.row, r.batch_size, record,
      say,
    )  # fmt: skip
  light = []
  if r.speed_of_light:
    light = runs.light(model, plan, record, r.traced)
  results = runs.finish(record, skipped, light)
  traces = runs.traces(model, plan, r.traced)
  write_json(r.out / report.TRACES, traces)
  record.close()
  if (why := report.write(r.out)) is not None:
    say(why)
  print(text_table(table(results["rows"])))
  if light:
    print("\n" + text_table(speed_of_light.table(light)))
  print(f"\n{r.out / report.REPORT}")
  return 0


def open_task(name: str, options: tasks.Options) -> tasks.Task:
  """The task of a name, asked as the options say.

  Raises:
    UserError: there is none, or it cannot be asked so.
  """
  path = Path(name).expanduser()
  if options.num_fewshot and name != "gsm8k":
    raise UserError(f"--num_fewshot: {name!r} is asked without examples.")
  if name == "gsm8k":
    task = packaged.gsm8k(options)
  elif name == "humaneval":
    task = packaged.humaneval(options)
  elif name.startswith(packaged.GYM):
    task = packaged.reasoning_gym(name, options)
  elif name == tasks.EMBEDDED:
    task = tasks.embedded(options.limit)
  elif path.suffix == ".jsonl":
    if not path.exists():
      beside = [p.name for p in path.parent.glob("*.jsonl")]
      near = nearest(path.name, beside, "file beside it")
      raise UserError(f"there is no task file {path}{near}.")
    task = tasks.read(path, options.limit)
  else:
    raise tasks.unknown(name, known_tasks())
  return packaged.as_chat(task) if options.chat else task


def known_tasks() -> list[str]:
  """Names that `open_task` takes, but for files."""
  families = [packaged.GYM + f for f in packaged.gym_families()]
  return [tasks.EMBEDDED, "gsm8k", "humaneval", *families]


def describe(
  request: Request, plan: runs.Plan, foreign: Sequence[str]
) -> dict[str, Any]:
  """Everything that decides the numbers, for run.json."""
  r = request
  peers = {t.details.get("source") for t, _ in plan.tasks}
  peers |= {"lm_eval"} if foreign else set()
  return {
    "checkpoint": {
      "name": r.opened.folder.name,
      "sha256": environment.checksum(r.opened.folder),
    },
    "environment": environment.describe(
      p for p in environment.PEERS if p in peers
    ),
    "model": {
      "dtype": r.dtype or api.default_dtype(),
      "quantize": r.quantize,
      "lora": r.lora,
      "attention": r.attention,
      "mesh": r.mesh,
    },
    "tasks": [
      {
        "name": t.name,
        "questions": len(t.questions),
        "sha256": t.checksum,
        "prompt_format": "chat" if r.chat else "as given",
        "details": t.details,
        "row": dataclasses.asdict(row),
      }
      for t, row in plan.tasks
    ]
    + [
      {
        "name": name,
        "limit": r.limit,
        "num_fewshot": r.num_fewshot,
        "prompt_format": "chat" if r.chat else "as given",
        "row": dataclasses.asdict(r.row),
      }
      for name in foreign
    ],
    "enable_thinking": r.enable_thinking,
    "unsafe_code": r.unsafe_code,
    "settings": {label(s): dataclasses.asdict(s) for s in plan.settings},
  }
