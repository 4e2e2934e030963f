"""Answers of OpenAI's protocol: whole, and as chunks in their order."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from nemodiff_jax.decode.results import Logprobs
from nemodiff_jax.decode.spelling import Spelling
from nemodiff_jax.serve import logprobs
from nemodiff_jax.serve.contract import Event, Job
from nemodiff_jax.serve.openai.choice import Choice, Said, merged
from nemodiff_jax.serve.openai.requests import Call
from nemodiff_jax.serve.openai.tool_stream import Content, Item
from nemodiff_jax.serve.openai.usage import usage
from nemodiff_jax.serve.protocol.openai import ChatRequest
from nemodiff_jax.serve.served import Served


class Reply:
  """The answer to a call, built from the events of its choices.

  Attributes:
    choices: of the answer, in order.
  """

  def __init__(self, served: Served, call: Call):
    """An answer that has not begun."""
    self._served = served
    self._call = call
    self._request = call.request
    self._chat = isinstance(call.request, ChatRequest)
    self._created = int(time.time())
    self._spelling = None
    if self._wants_logprobs():
      as_ids = call.request.return_tokens_as_token_ids
      self._spelling = logprobs.Spelling(served, as_ids)
    self.choices = [Choice(served, call, i) for i in range(len(call.jobs))]
    self._passes = [_spelling(served, job) for job in call.jobs if job.passes]
    self._offsets = [0] * len(call.jobs)

  def begin(self) -> Iterator[dict[str, Any]]:
    """Chunks before any event: choices first appear in their order."""
    if not self._chat:
      return
    for choice, echo in zip(self.choices, self._call.echoes, strict=True):
      delta = {"role": "assistant", "content": ""}
      chunk = self._chunk(choice, {"delta": delta, "finish_reason": None})
      if choice.index == 0 and self._request.return_token_ids:
        chunk["prompt_token_ids"] = list(choice.job.prompt)
      yield chunk
      if echo:
        yield self._delta(choice, {"content": echo})

  def chunks(self, index: int, event: Event) -> Iterator[dict[str, Any]]:
    """Chunks of an event; the last of a choice has its finish_reason."""
    choice = self.choices[index]
    first = not choice.ids
    said = choice.push(event)
    parts = list(self._parts(choice, said, event, first))
    extra = self._extra(choice, said)
    if event.passes and self._passes:
      ended = event.finish_reason is not None
      extra |= self._passes[index].push(event.passes, ended)
    if extra and not parts:
      parts = [{"delta": {}} if self._chat else {"text": ""}]
    for i, part in enumerate(parts):
      part = part | {"finish_reason": None}
      yield self._chunk(choice, part | extra if i == 0 else part)
    if said.ended:
      empty = {"delta": {}} if self._chat else {"text": ""}
      yield self._chunk(choice, empty | self._finish(choice))

  def end(self) -> Iterator[dict[str, Any]]:
    """The chunk of the usage, where it is asked for; always the last."""
    options = self._request.stream_options
    if options is not None and options.include_usage:
      yield self._head(".chunk") | {
        "choices": [],
        "usage": usage(self._call, self.choices),
      }

  def whole(self, events: Sequence[Sequence[Event]]) -> dict[str, Any]:
    """The answer, of all events of every choice."""
    choices = [
      self._message(c, its) for c, its in zip(self.choices, events, strict=True)
    ]
    made = self._head("") | {
      "choices": choices,
      "usage": usage(self._call, self.choices),
    }
    if self._chat and self._request.prompt_logprobs is not None:
      made["prompt_logprobs"] = choices[0].pop("prompt_logprobs", None)
    if self._chat and self._request.return_token_ids:
      made["prompt_token_ids"] = list(self._call.jobs[0].prompt)
    return made

  def _message(self, choice: Choice, events: Sequence[Event]) -> dict[str, Any]:
    """A choice of the whole answer."""
    said = [choice.push(e) for e in events]
    content, calls = merged([i for s in said for i in s.items])
    reasoning = "".join(s.reasoning for s in said)
    content = self._call.echoes[choice.index] + content
    made: dict[str, Any] = {"index": choice.index}
    if self._chat:
      message = {"role": "assistant", "content": content, "refusal": None}
      if calls:
        message |= {"content": content or None, "tool_calls": calls}
      if reasoning:
        message |= {"reasoning": reasoning, "reasoning_content": reasoning}
      made["message"] = message
    else:
      made["text"] = content
    made |= {"logprobs": None} | self._finish(choice)
    found = [s.logprobs for s in said if s.logprobs is not None]
    all_ids = [i for s in said if s.logprobs is not None for i in s.ids]
    scored = next(
      (e.prompt_logprobs for e in events if e.prompt_logprobs), None
    )
    if self._spelling is not None:
      made |= self._logprobs(choice, all_ids, logprobs.joined(found), scored)
    if self._request.return_token_ids:
      made["token_ids"] = choice.ids
      if not self._chat:
        made["prompt_token_ids"] = list(choice.job.prompt)
    return made

  def _parts(
    self, choice: Choice, said: Said, event: Event, first: bool
  ) -> Iterator[dict[str, Any]]:
    if self._chat:
      if said.reasoning:
        both = {"reasoning": said.reasoning}
        yield {"delta": both | {"reasoning_content": said.reasoning}}
      for item in said.items:
        yield {"delta": _delta_of(item)}
      return
    text = "".join(i.text for i in said.items if isinstance(i, Content))
    if first and (echo := self._call.echoes[choice.index]):
      part: dict[str, Any] = {"text": echo}
      scored = event.prompt_logprobs
      if self._spelling is not None and scored is not None:
        part |= self._logprobs(choice, [], logprobs.joined([]), scored)
      yield part
    if text:
      yield {"text": text}

  def _extra(self, choice: Choice, said: Said) -> dict[str, Any]:
    """What goes with tokens rather than with text."""
    extra: dict[str, Any] = {}
    if self._spelling is not None and said.logprobs is not None and said.ids:
      extra |= self._logprobs(choice, said.ids, said.logprobs, None)
    if self._request.return_token_ids and said.ids:
      extra["token_ids"] = list(said.ids)
    return extra

  def _logprobs(
    self,
    choice: Choice,
    ids: Sequence[int],
    found: Logprobs,
    scored: Logprobs | None,
  ) -> dict[str, Any]:
    """`logprobs` of tokens, and of the prompt where it was `scored`."""
    made: dict[str, Any] = {}
    request, spelling = self._request, self._spelling
    if spelling is None:
      return made
    prompt = choice.job.prompt
    if scored is not None and request.prompt_logprobs is not None:
      made["prompt_logprobs"] = logprobs.prompt(spelling, prompt, scored)
    if self._chat:
      if request.logprobs:
        content = logprobs.chat(spelling, ids, found)
        made["logprobs"] = {"content": content, "refusal": None}
      return made
    if request.logprobs is None:
      return made
    if scored is not None and request.echo:
      ids, found = [*prompt, *ids], logprobs.joined([scored, found])
    offset = self._offsets[choice.index]
    made["logprobs"] = logprobs.completion(spelling, ids, found, offset)
    self._offsets[choice.index] += sum(map(spelling.width, ids))
    return made

  def _wants_logprobs(self) -> bool:
    given = self._request.logprobs
    wanted = given is not None and given is not False
    return wanted or self._request.prompt_logprobs is not None

  def _finish(self, choice: Choice) -> dict[str, Any]:
    return {
      "finish_reason": choice.finish_reason,
      "stop_reason": choice.stop_reason,
    }

  def _delta(self, choice: Choice, delta: dict[str, Any]) -> dict[str, Any]:
    return self._chunk(choice, {"delta": delta, "finish_reason": None})

  def _chunk(self, choice: Choice, part: dict[str, Any]) -> dict[str, Any]:
    chunk = self._head(".chunk") | {
      "choices": [{"index": choice.index, **part}]
    }
    options = self._request.stream_options
    if options is not None and options.continuous_usage_stats:
      chunk["usage"] = usage(self._call, self.choices)
    return chunk

  def _head(self, kind: str) -> dict[str, Any]:
    chat = f"chat.completion{kind}"
    return {
      "id": self._call.id,
      "object": chat if self._chat else "text_completion",
      "created": self._created,
      "model": self._request.model or self._served.name,
    }


def _spelling(served: Served, job: Job) -> Spelling:
  """Spells the passes of a choice."""
  tokenizer = served.text_tokenizer()
  return Spelling(tokenizer, served.spelled, served.config, job.row)


def _delta_of(item: Item) -> dict[str, Any]:
  """A delta of one piece of content or of a call."""
  if isinstance(item, Content):
    return {"content": item.text}
  call: dict[str, Any] = {"index": item.index}
  function: dict[str, Any] = {"arguments": item.arguments}
  if item.name is not None:
    call |= {"id": item.id, "type": "function"}
    function = {"name": item.name} | function
  return {"tool_calls": [call | {"function": function}]}
