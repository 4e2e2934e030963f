"""A conversation, its commands, and what Ctrl-C does to a reply."""

import dataclasses
from collections.abc import Callable
from typing import Any

from nemodiff_jax import api
from nemodiff_jax.decode.config import (
  MODES,
  DecodeConfig,
  RowSettings,
  check_prompt,
)
from nemodiff_jax.engines import open_engine
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.jsonl import is_text
from nemodiff_jax.prompts import encode_prompt
from nemodiff_jax.serve.engine import Engine, Generation

# What the embedded model can be asked.
EXAMPLE = "What is 17 + 25 - 8?"
HELP = (
  f"/mode NAME   one of {', '.join(MODES)}\n"
  "/reset       forget the conversation\n"
  "/quit        leave (or Ctrl-D)"
)


def how(config: DecodeConfig) -> str:
  """Mode and block length in words."""
  block = "auto" if config.widths else config.block_length
  return f"{config.mode}, block {block}"


@dataclasses.dataclass
class Interrupt:
  """What Ctrl-C does: it ends a reply after its pass, and anything else at once.

  An exception in the middle of a pass could be lost in a callback, or take the
  cache with it. A second Ctrl-C during a reply does not wait for the pass.

  Attributes:
    replying: whether a reply is going on.
    asked: whether it should end.
  """

  replying: bool = False
  asked: bool = False

  def __call__(self, *_) -> None:
    """Handles the signal."""
    if self.asked or not self.replying:
      raise KeyboardInterrupt
    self.asked = True


@dataclasses.dataclass
class Chat:
  """A conversation and how its next reply is decoded.

  Attributes:
    model: the model.
    configure: how to decode in a mode, as the command was told.
    config: how the next reply is decoded.
    row: settings of every reply.
    max_length: limit on positions, if one is set.
    variables: for the chat template.
    messages: what was said.
    engine: decodes the replies, and keeps whole pages between them; None
      until the first one, and after a change of mode.
    interrupt: the handler of Ctrl-C.
    said: the last reply, as far as it came.
  """

  model: api.Model
  configure: Callable[[str], DecodeConfig]
  config: DecodeConfig
  row: RowSettings
  max_length: int | None = None
  variables: dict[str, Any] = dataclasses.field(default_factory=dict)
  messages: list[dict[str, str]] = dataclasses.field(default_factory=list)
  engine: Engine | None = None
  interrupt: Interrupt = dataclasses.field(default_factory=Interrupt)
  said: str = ""

  def command(self, line: str) -> bool:
    """Obeys a line that begins with '/'; False: leave.

    Raises:
      UserError: an unknown command or mode.
    """
    name, _, argument = line.partition(" ")
    if name == "/quit":
      return False
    if name == "/reset":
      self.messages.clear()
      print("[forgotten]")
    elif name == "/mode":
      self.config = self.configure(argument.strip())
      self.engine = None
      print(f"[{how(self.config)}]")
    elif name == "/help":
      print(HELP)
    else:
      raise UserError(f"unknown command {name!r}; /help lists them.")
    return True

  def reply(self, line: str) -> None:
    """Answers a message, printing the text as it becomes certain.

    Raises:
      UserError: the message is no text, the conversation is too long, or the
        template refuses it; the conversation is what it was.
    """
    if not is_text(line):
      raise UserError("the line is not UTF-8; it was not sent.", "bad_utf8")
    messages = [*self.messages, {"role": "user", "content": line}]
    model = self.model
    ids = encode_prompt(
      model.tokenizer, model.template, messages, **self.variables
    )
    prompt = check_prompt(ids, self.row, model.config, self.max_length)
    self.interrupt.replying = True
    made = None
    try:
      made = self._decode(prompt)
    except KeyboardInterrupt:
      self.engine = None  # A visit was broken off: what it holds is unknown.
    finally:
      self.interrupt.replying = self.interrupt.asked = False
    print(f"\n[{self._figures(made)}]")
    reply = {"role": "assistant", "content": self.said}
    self.messages = [*messages, reply]

  def _decode(self, prompt: list[int]) -> Generation | None:
    """Prints a reply as it comes; None: it was stopped."""
    self.said = ""
    if self.engine is None:
      self.engine = open_engine(
        self.model,
        self.config,
        rows=1,
        max_length=self.max_length,
        settings=[self.row],
      )
    engine = self.engine
    made = engine.submit(prompt, self.row, stream=True)
    while not made.ended:
      if self.interrupt.asked:
        engine.cancel(made)
        return None
      for event in engine.step():
        self.said += event.text
        print(event.text, end="", flush=True)
    return made

  def _figures(self, made: Generation | None) -> str:
    if made is None:
      return "stopped"
    output, request = made.output, made.request
    cut = output.result().finish_reason == "length"
    reused = f" ({request.reused} reused)" if request.reused else ""
    return (
      f"{self.config.mode}: {len(output.token_ids)} tokens in {output.nfe}"
      f" passes, prompt of {len(request.prompt)}{reused}"
      f"{', cut at --max_new_tokens' if cut else ''}"
    )
