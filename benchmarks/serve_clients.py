"""Clients that load a server, and take little time themselves."""

import asyncio
import contextlib
import dataclasses
import json
import random
import time
from collections.abc import AsyncGenerator
from typing import Any


@dataclasses.dataclass
class Tally:
  """What clients saw.

  Attributes:
    whole: answers that were read to their end.
    gone: answers that were left.
    errors: answers that were none.
    differing: texts that are not those of the same request alone.
    firsts: seconds to the first text.
    resident: bytes of the server after 10 seconds, and at the end.
  """

  whole: int = 0
  gone: int = 0
  errors: list[str] = dataclasses.field(default_factory=list)
  differing: int = 0
  firsts: list[float] = dataclasses.field(default_factory=list)
  resident: list[int] = dataclasses.field(default_factory=list)


async def stream(url: str, path: str, body: Any) -> AsyncGenerator[Any]:
  """Events of an answer, and at its end the text b'[DONE]' was read.

  A client of its own: the usual ones take more time than the server.
  """
  address, port = url.removeprefix("http://").split(":")
  reader, writer = await asyncio.open_connection(address, int(port))
  data = json.dumps(body).encode()
  head = (
    f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
  )
  try:
    writer.write(head.encode() + data)
    status = (await reader.readline()).split()[1]
    if status != b"200":
      raise OSError(f"{path}: {status.decode()} {await reader.read()!r:.300}")
    async for line in reader:
      if line.startswith(b"{") or line.startswith(b"data: {"):
        yield json.loads(line.removeprefix(b"data: "))
      elif line.startswith(b"data: [DONE]"):
        return
    if body.get("stream"):
      raise OSError(f"{path}: the stream has no end")
  finally:
    writer.close()


def requests() -> list[tuple[str, dict[str, Any]]]:
  """Paths and bodies: both protocols, lengths and settings of many kinds."""
  draw, made = random.Random(0), []
  for i in range(24):
    a, b = draw.randint(1, 40), draw.randint(1, 40)
    text = f"What is {a} + {b}?" if i % 4 else f"What is {a} + {b} - 3?" * 20
    own: dict[str, Any] = {
      "temperature": draw.choice([0, 0.8, 1.3]),
      "top_p": draw.choice([1.0, 0.9]),
      "top_k": draw.choice([0, 20]),
    }
    length = draw.choice([8, 40, 160])
    if i % 3 == 0:
      own |= {"sampling_seed": i, "max_new_tokens": length}
      own |= {"ignore_eos": i % 2 == 0}
      made.append(("/generate", {"text": text, "sampling_params": own}))
      continue
    own |= {"seed": i, "max_tokens": length}
    own |= draw.choice([
      {}, {}, {"stop": ["answer"]}, {"presence_penalty": 0.5},
      {"structured_outputs": {"regex": "The answer is [0-9]{2}\\."}},
    ])  # fmt: skip
    own |= {"mode": draw.choice(["ar", "linear_spec"])}
    if i % 3 == 1:
      messages = [{"role": "user", "content": text}]
      made.append(("/v1/chat/completions", {"messages": messages} | own))
    else:
      made.append(("/v1/completions", {"prompt": text} | own))
  return [(path, body | {"stream": True}) for path, body in made]


def text_of(event: dict[str, Any], so_far: str) -> str:
  """The whole text, with what an event adds to it."""
  if "error" in event:
    raise OSError(str(event["error"]))
  if "text" in event:
    return event["text"]  # SGLang's streams are cumulative.
  for choice in event["choices"]:
    delta = choice.get("delta") or choice
    so_far += delta.get("content") or delta.get("text") or ""
  return so_far


async def ask(url: str, path: str, body: Any, tally: Tally, leave: int) -> str:
  """An answer's text; `leave`: go after so many events, 0: at its end."""
  start, text, seen = time.perf_counter(), "", 0
  async with contextlib.aclosing(stream(url, path, body)) as events:
    async for event in events:
      before, text, seen = text, text_of(event, text), seen + 1
      if text and not before:
        tally.firsts.append(time.perf_counter() - start)
      if seen == leave:
        tally.gone += 1
        return text
  tally.whole += 1
  return text
