"""Questions with answers: plain JSON Lines, and tasks by name."""

import dataclasses
import hashlib
import importlib.resources
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemodiff_jax.errors import UserError, nearest
from nemodiff_jax.evaluate import score
from nemodiff_jax.io import jsonl
from nemodiff_jax.prompts import Prompt

EMBEDDED = "embedded"
DEFAULT_MAX_NEW_TOKENS = 128


@dataclasses.dataclass(frozen=True)
class Question:
  """One question.

  Attributes:
    id: its name in the task.
    prompt: text or messages.
    answer: the right answer, to be shown and for the checksum.
    judge: what a reply is worth.
    group: part of the task that is counted apart; None: none.
  """

  id: str
  prompt: Prompt
  answer: str
  judge: score.Judge
  group: str | None = None


@dataclasses.dataclass(frozen=True)
class Task:
  """Questions, and how they are asked.

  Attributes:
    name: of the task.
    questions: in their order.
    max_new_tokens: of a reply, unless the run says otherwise.
    stop: texts that end a reply.
    runs_code: whether judging runs programs that the model wrote.
    details: where it comes from, for the record.
  """

  name: str
  questions: Sequence[Question]
  max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
  stop: Sequence[str] = ()
  runs_code: bool = False
  details: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def checksum(self) -> str:
    """SHA-256 of the questions and answers."""
    known = [[q.id, q.prompt, q.answer, q.group] for q in self.questions]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Options:
  """How tasks are asked, as the flags say.

  Attributes:
    limit: questions of each task; None: all.
    num_fewshot: examples before each question.
    chat: text prompts become a message.
    isolated: programs run in namespaces.
  """

  limit: int | None = None
  num_fewshot: int = 0
  chat: bool = False
  isolated: bool = True


def embedded(limit: int | None) -> Task:
  """Held-out questions for the embedded checkpoint: three kinds, in turn."""
  file = importlib.resources.files("nemodiff_jax") / "assets" / "held_out.jsonl"
  task = parse(EMBEDDED, "held_out.jsonl", file.read_bytes(), limit)
  return dataclasses.replace(task, max_new_tokens=112)


def read(path: Path, limit: int | None) -> Task:
  """A task from a JSONL file.

  A line is {"prompt" | "messages", "answer" | "regex", "extract", "group",
  "id"}: the reply should be the answer; or, with a pattern `extract`, the last
  of its matches should be; or the pattern `regex` should be found in it.

  Raises:
    UserError: the file cannot be read, is empty, or has a bad line.
  """
  try:
    data = path.read_bytes()
  except OSError as e:
    raise UserError(f"task file {path}: {e.strerror}.") from e
  return parse(path.stem, str(path), data, limit)


def parse(name: str, path: str, data: bytes, limit: int | None) -> Task:
  """A task from the bytes of a JSONL file, called `path` in errors."""
  questions, ids = [], set()
  try:
    for line in jsonl.read_lines(io.BytesIO(data)):
      question = _question(path, line)
      if question.id in ids:
        raise UserError(
          f"{path}:{line.number}: the id {question.id!r} is there twice."
        )
      ids.add(question.id)
      questions.append(question)
  except UserError as e:
    text = str(e)
    raise UserError(text if text.startswith(path) else f"{path}: {e}") from e
  if not questions:
    raise UserError(f"{path} holds no question.")
  digest = hashlib.sha256(data).hexdigest()
  details = {"source": path, "sha256": digest}
  return Task(name, questions[:limit], details=details)


def _question(path: str, line: jsonl.Line) -> Question:
  where, given = f"{path}:{line.number}", line.value
  if line.error is not None:
    raise UserError(f"{where}: {line.error}")
  prompts = [given[k] for k in ("prompt", "messages") if given.get(k)]
  if len(prompts) != 1:
    raise UserError(
      f"{where}: expected one of prompt (text) and messages (a list), not"
      f" empty; found the fields {sorted(given)}."
    )
  prompt = prompts[0]
  if not isinstance(prompt, str) and not (
    isinstance(prompt, list) and all(isinstance(m, dict) for m in prompt)
  ):
    raise UserError(f"{where}: a prompt is text, messages are objects.")
  answer = given.get("answer")
  if isinstance(answer, int | float) and not isinstance(answer, bool):
    answer = str(answer)
  regex = _pattern(where, given, "regex")
  extract = _pattern(where, given, "extract")
  if not isinstance(answer, str) and (answer is not None or regex is None):
    raise UserError(
      f"{where}: expected an answer (text or a number) or a regex; found the"
      f" fields {sorted(given)}."
    )
  group = given.get("group")
  return Question(
    id=str(given.get("id", line.number)),
    prompt=prompt,
    answer=answer if answer is not None else given["regex"],
    judge=_judge(answer, regex, extract),
    group=None if group is None else str(group),
  )


def _judge(answer, regex, extract) -> score.Judge:
  if regex is not None:
    return score.matches(regex)
  if extract is not None:
    return score.extracted(answer, extract)
  return score.exact(answer)


def _pattern(where: str, given: dict, name: str) -> re.Pattern | None:
  if (text := given.get(name)) is None:
    return None
  try:
    return re.compile(text)
  except (re.error, TypeError) as e:
    raise UserError(f"{where}: {name} is no regular expression ({e}).") from e


def unknown(name: str, names: Sequence[str]) -> UserError:
  """What to say of a task that does not exist."""
  return UserError(
    f"there is no task {name!r}{nearest(name, names, 'task')}. A task is"
    f" {EMBEDDED}, gsm8k, humaneval, reasoning_gym:FAMILY, lm_eval:TASK, or the"
    " path of a .jsonl file."
  )
