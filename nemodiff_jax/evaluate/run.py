"""A run: every task in every setting, recorded sample by sample."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from nemodiff_jax import api
from nemodiff_jax.decode.config import DecodeConfig, RowSettings
from nemodiff_jax.errors import UserError
from nemodiff_jax.evaluate import decoding, speed_of_light, traced
from nemodiff_jax.evaluate.record import RESULTS, Record, Sample, write_json
from nemodiff_jax.evaluate.results import summarise
from nemodiff_jax.evaluate.sweep import Skipped, label
from nemodiff_jax.evaluate.tasks import Question, Task


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is decoded.

  Attributes:
    tasks: with the row settings of each.
    settings: how to decode.
    batch_size: rows at a time; it changes nothing.
    variables: for the chat template.
  """

  tasks: Sequence[tuple[Task, RowSettings]]
  settings: Sequence[DecodeConfig]
  batch_size: int
  variables: dict[str, Any] = dataclasses.field(default_factory=dict)


def row_for(task: Task, row: RowSettings, own_limit: bool) -> RowSettings:
  """The run's row settings with what the task asks for.

  The task's limit of tokens counts unless the run gave one (`own_limit`); its
  stop strings are added.
  """
  changes: dict[str, Any] = {"stop": [*row.stop, *task.stop]}
  if not own_limit:
    changes["max_new_tokens"] = task.max_new_tokens
  return dataclasses.replace(row, **changes)


def run(
  model: api.Model,
  plan: Plan,
  record: Record,
  say: Callable[[str], None],
) -> list[Skipped]:
  """Decodes what the record lacks, and writes it; returns what cannot be.

  A setting that cannot be decoded here (memory) is skipped.
  """
  record.write_questions(
    {
      "task": task.name,
      "id": q.id,
      "group": q.group,
      "prompt": q.prompt,
      "answer": q.answer,
    }
    for task, _ in plan.tasks
    for q in task.questions
  )
  skipped = []
  for task, row in plan.tasks:
    asked = [(q.id, q.prompt) for q in task.questions]
    prompts = decoding.prepare(model, asked, row, **plan.variables)
    for setting in plan.settings:
      begun, name = time.perf_counter(), label(setting)
      try:
        count = _fill(model, plan, record, task, row, setting, prompts)
      except UserError as e:
        if e.kind != "memory":
          raise
        skipped.append(Skipped(f"{task.name}, {name}", str(e)))
        continue
      spent = time.perf_counter() - begun
      say(f"{task.name}, {name}: {count} replies in {spent:.1f} s")
  return skipped


def _fill(model, plan, record, task, row, setting, prompts) -> int:
  """Decodes the questions that have no sample yet; returns how many."""
  name = label(setting)
  done = record.done(task.name, name)
  todo = [i for i, q in enumerate(task.questions) if q.id not in done]
  if not todo:
    return 0
  outputs = decoding.decode(
    model, setting, [prompts[i] for i in todo], row, plan.batch_size
  )
  for i, output in zip(todo, outputs, strict=True):
    record.add(sample(task.name, name, task.questions[i], output))
  return len(todo)


def sample(
  task: str, setting: str, question: Question, output: api.DecodeOutput
) -> Sample:
  """A line of samples.jsonl."""
  reply = decoding.reply_fields(output)
  verdict = question.judge(reply["text"])
  return {
    "task": task,
    "setting": setting,
    "id": question.id,
    "group": question.group,
    "score": verdict.score,
    "found": verdict.found,
    **reply,
  }


def finish(
  record: Record,
  skipped: Sequence[Skipped],
  light: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
  """Writes results.json, and returns what it holds."""
  results = {
    "rows": summarise(record.samples),
    "skipped": [dataclasses.asdict(s) for s in skipped],
    "speed_of_light": list(light),
  }
  write_json(record.folder / RESULTS, results)
  return results


def traces(model: api.Model, plan: Plan, count: int) -> list[dict[str, Any]]:
  """What the traces of the first `count` questions of the first task tell."""
  if not count or not plan.tasks:
    return []
  task, row = plan.tasks[0]
  questions = task.questions[:count]
  asked = [(q.id, q.prompt) for q in questions]
  prompts = decoding.prepare(model, asked, row, **plan.variables)
  found = []
  for setting in plan.settings:
    if setting.mode not in ("diffusion", "linear_spec"):
      continue
    for question, prompt in zip(questions, prompts, strict=True):
      entries = decoding.trace(model, setting, prompt, row)
      found.append(
        {
          "task": task.name,
          "setting": label(setting),
          "id": question.id,
          "judged": traced.judged_drafts(setting.mode, entries),
          "passes": traced.passes_per_block(entries),
        }
      )
  return found


def light(
  model: api.Model, plan: Plan, record: Record, count: int
) -> list[dict[str, Any]]:
  """The oracle on the first `count` questions of the first task.

  For each block length of the diffusion settings, beside what the settings of
  that length needed for the same questions.
  """
  if not plan.tasks:
    return []
  task, row = plan.tasks[0]
  asked = [(q.id, q.prompt) for q in task.questions[:count]]
  prompts = decoding.prepare(model, asked, row, **plan.variables)
  sizes = {s.block_length for s in plan.settings if s.mode == "diffusion"}
  rows = []
  for size in sorted(sizes):
    found = [
      speed_of_light.speed_of_light(model, p, size, row.max_new_tokens)
      for p in prompts
    ]
    measured = {}
    for setting in plan.settings:
      if setting.mode == "ar" or setting.block_length == size:
        done = record.done(task.name, label(setting))
        mine = [done[name] for name, _ in asked]
        tokens = sum(s["num_generated_tokens"] for s in mine)
        measured[label(setting)] = tokens / sum(s["nfe"] for s in mine)
    rows.append(speed_of_light.beside(found, size, measured))
  return rows
