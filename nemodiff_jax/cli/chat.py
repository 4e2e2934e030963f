"""A conversation in the terminal; the mode can change between replies.

    python -m nemodiff_jax.cli.chat --checkpoint=DIR --mode=linear_spec

Commands: /mode NAME, /reset, /help, /quit. Ctrl-C stops a reply, not the chat.
The cache is kept, so that a turn reads only what is new.
"""

import dataclasses
import signal
import sys

from absl import flags

from nemodiff_jax import api, streams
from nemodiff_jax.cli import flags as shared
from nemodiff_jax.decode.config import (
  MODES,
  DecodeConfig,
  RowSettings,
  check_prompt,
  decode_config,
)
from nemodiff_jax.decode.generate import Kept
from nemodiff_jax.errors import UserError
from nemodiff_jax.prompts import encode_prompt, finish_row

flags.adopt_module_key_flags(shared)
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
    config: how the next reply is decoded.
    row: settings of every reply.
    messages: what was said.
    kept: the cache between replies.
    interrupt: the handler of Ctrl-C.
  """

  model: api.Model
  config: DecodeConfig
  row: RowSettings
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
      self.config = decode_config(
        self.model.config,
        argument.strip(),
        threshold=self.config.threshold,
        steps_per_block=self.config.steps_per_block,
        draft_threshold=self.config.draft_threshold,
      )
      print(f"[{self.config.mode}, block {self.config.block_length}]")
    elif name == "/help":
      print(HELP)
    else:
      raise UserError(f"unknown command {name!r}; /help lists them.")
    return True

  def reply(self, line: str) -> None:
    """Answers a message, printing the text as it becomes certain.

    Raises:
      UserError: the conversation is too long, or the template refuses it.
    """
    messages = [*self.messages, {"role": "user", "content": line}]
    think = shared.ENABLE_THINKING.value
    variables = {} if think is None else {"enable_thinking": think}
    model = self.model
    ids = encode_prompt(model.tokenizer, model.template, messages, **variables)
    prompt = check_prompt(ids, self.row, model.config, shared.max_length())
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


def main() -> int:
  """Runs the command; returns the exit code."""
  # While imports and compilers run, an interrupt may be swallowed: end at once.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  opened = shared.checkpoint()
  if opened.template is None or opened.tokenizer is None:
    raise UserError(
      f"{opened.folder}: a chat needs a chat template (chat_template.jinja)"
      " and a tokenizer; use cli.generate."
    )
  row = finish_row(opened.tokenizer, shared.row_settings())
  config = shared.run_config(opened)
  chat = Chat(shared.load(opened), config, row)
  signal.signal(signal.SIGINT, chat.interrupt)
  print(f"[{config.mode}, block {config.block_length}; /help for commands]")
  if sys.stdin.isatty():
    import readline  # noqa: F401  (makes input() editable)
  while True:
    try:
      line = input("> ").strip()
      if line.startswith("/"):
        if not chat.command(line):
          return 0
      elif line:
        chat.reply(line)
    except EOFError:
      print()
      return 0
    except KeyboardInterrupt:
      print("\n[/quit or Ctrl-D leaves]")
    except UserError as e:
      print(f"error: {e}", file=sys.stderr)


def console() -> None:
  """Entry point of the installed command."""
  shared.run(main)


if __name__ == "__main__":
  console()
