"""Tasks of lm_eval, decoded and recorded like the others; needs lm_eval."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nemodiff_jax import api
from nemodiff_jax.decode.config import DecodeConfig, RowSettings
from nemodiff_jax.errors import UserError
from nemodiff_jax.evaluate.decoding import reply_fields
from nemodiff_jax.evaluate.record import Record, Sample
from nemodiff_jax.evaluate.sweep import Skipped, label
from nemodiff_jax.evaluate.tasks import Options, unknown

PREFIX = "lm_eval:"
_SCORES = ("exact_match", "acc", "pass@1", "f1")


class Tasks:
  """What lm_eval knows, its own tasks and those of a folder.

  Raises:
    UserError: lm_eval is not installed.
  """

  def __init__(self, include_path: str | None):
    """Reads the list of tasks; `include_path` holds more."""
    try:
      from lm_eval.tasks import TaskManager
    except ImportError as e:
      raise UserError(
        "lm_eval is not installed: pip install 'nemodiff-jax[evaluate]'."
      ) from e
    self.manager = TaskManager(include_path=include_path)

  def check(self, names: Sequence[str]) -> None:
    """Raises a UserError with the nearest name if there is no such task."""
    known = self.manager.all_tasks
    for name in names:
      if name.removeprefix(PREFIX) not in known:
        raise unknown(name, [PREFIX + k for k in known])


def run(
  tasks: Tasks,
  names: Sequence[str],
  model: api.Model,
  settings: Sequence[DecodeConfig],
  options: Options,
  row: RowSettings,
  batch_size: int,
  record: Record,
  say: Callable[[str], None],
) -> list[Skipped]:
  """Runs what the record lacks; returns what was left out.

  A task of likelihoods runs once: they are by the ar head in every mode.
  """
  left_out = []
  for name in names:
    for setting in settings:
      before = _whole(record.samples, name)
      if any(s["output_type"] != "generate_until" for s in before):
        why = "likelihoods are by the ar head in every mode"
        if label(setting) != before[0]["setting"]:
          left_out.append(Skipped(f"{name}, {label(setting)}", why))
        continue
      if any(s["setting"] == label(setting) for s in before):
        continue
      found = list(
        evaluate(tasks, name, model, setting, options, row, batch_size)
      )
      known = {(s["task"], s["setting"], s["id"]) for s in record.samples}
      for sample in found:
        key = sample["task"], sample["setting"], sample["id"]
        if key not in known:
          record.add(sample | {"asked": name, "of": len(found)})
      say(f"{name}, {label(setting)}: {len(found)} samples")
  return left_out


def _whole(samples: Sequence[Sample], name: str) -> list[Sample]:
  """Samples of those runs of a task that came to their end."""
  mine = [s for s in samples if s.get("asked") == name]
  count = lambda setting: sum(s["setting"] == setting for s in mine)
  return [s for s in mine if count(s["setting"]) == s["of"]]


def evaluate(
  tasks: Tasks,
  name: str,
  model: api.Model,
  setting: DecodeConfig,
  options: Options,
  row: RowSettings,
  batch_size: int,
) -> Iterator[Sample]:
  """The samples of a task, scored by lm_eval."""
  from lm_eval import simple_evaluate

  from nemodiff_jax.evaluate.lm_eval_model import NemoDiff

  how: dict[str, Any] = {}
  if setting.mode != "ar":
    how["block_length"] = setting.block_length
  if setting.mode == "diffusion":
    how |= {
      "threshold": setting.threshold,
      "steps_per_block": setting.steps_per_block,
    }
  lm = NemoDiff(
    model=model,
    mode=setting.mode,
    batch_size=batch_size,
    max_new_tokens=row.max_new_tokens,
    temperature=row.temperature,
    seed=row.seed,
    **how,
  )
  out = simple_evaluate(
    model=lm,
    tasks=[name.removeprefix(PREFIX)],
    num_fewshot=options.num_fewshot or None,
    limit=options.limit,
    apply_chat_template=options.chat,
    task_manager=tasks.manager,
    bootstrap_iters=0,
    verbosity="WARNING",
  )
  if out is None or not any(out["samples"].values()):
    raise UserError(f"{name} holds no question.")
  for task, samples in out["samples"].items():
    kind = out["configs"][task]["output_type"]
    for s in samples:
      yield _sample(task, kind, label(setting), s, lm.outputs)


def _sample(task, kind, setting, given, outputs) -> Sample:
  metric = next((m for m in _SCORES if m in given), None) or given["metrics"][0]
  used = given.get("filter", "none")
  sample = {
    "task": PREFIX + task + (f" ({used})" if used != "none" else ""),
    "setting": setting if kind == "generate_until" else "ar",
    "id": str(given["doc_id"]),
    "group": None,
    "score": float(given[metric]),
    "metric": metric,
    "found": _text(given["filtered_resps"]),
    "output_type": kind,
    "prompt": _text(given["arguments"]),
    "answer": str(given["target"]),
  }
  output = outputs.get((task, given["doc_id"], 0))
  if output is None:
    return sample | {"responses": given["filtered_resps"]}
  return sample | reply_fields(output)


def _text(value: Any) -> str:
  """The first text in nested lists and dicts."""
  while isinstance(value, list | tuple | dict) and value:
    value = next(iter(value.values())) if isinstance(value, dict) else value[0]
  return str(value)
