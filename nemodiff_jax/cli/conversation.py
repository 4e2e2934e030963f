"""A conversation, its commands, and what Ctrl-C does to a reply."""

import dataclasses
from collections.abc import Callable
from typing import Any

from nemodiff_jax import api, streams
from nemodiff_jax.decode.config import (
  MODES,
  DecodeConfig,
  RowSettings,
  check_prompt,
)
from nemodiff_jax.decode.generate import Kept
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.jsonl import is_text
from nemodiff_jax.prompts import encode_prompt

HELP = (
  f"/mode NAME   one of {', '.join(MODES)}\n"
  "/reset       forget the conversation\n"
  "/quit        leave (or Ctrl-D)"
)


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
    kept: the cache between replies.
    interrupt: the handler of Ctrl-C.
  """

  model: api.Model
  configure: Callable[[str], DecodeConfig]
  config: DecodeConfig
  row: RowSettings
  max_length: int | None = None
  variables: dict[str, Any] = dataclasses.field(default_factory=dict)
  messages: list[dict[str, str]] = dataclasses.field(default_factory=list)
  kept: Kept = dataclasses.field(default_factory=Kept)
  interrupt: Interrupt = dataclasses.field(default_factory=Interrupt)

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
      print(f"[{self.config.mode}, block {self.config.block_length}]")
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
    said, figures = "", "stopped"
    self.interrupt.replying = True
    try:
      for item in streams.watch(
        model, self.config, prompt, self.row, kept=self.kept
      ):
        if self.interrupt.asked:
          break
        if isinstance(item, str):
          said += item
          print(item, end="", flush=True)
        elif isinstance(item, api.DecodeOutput):
          figures = (
            f"{item.mode}: {item.completion_tokens} tokens in {item.nfe}"
            f" passes, {self.kept.reused} of {len(prompt)} prompt tokens kept"
          )
    except KeyboardInterrupt:
      pass
    finally:
      self.interrupt.replying = self.interrupt.asked = False
    print(f"\n[{figures}]")
    self.messages = [*messages, {"role": "assistant", "content": said}]
