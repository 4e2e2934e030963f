"""A conversation in the terminal; the mode can change between replies.

    python -m nemodiff_jax.cli.chat --checkpoint=DIR --mode=linear_spec

Commands: /mode NAME, /reset, /help, /quit. Ctrl-C stops a reply, not the chat.
The cache is kept, so that a turn reads only what is new.
"""

import contextlib
import functools
import signal
import sys
import termios
from collections.abc import Generator

from absl import flags

from nemodiff_jax.cli import flags as shared
from nemodiff_jax.cli import main as process
from nemodiff_jax.cli.conversation import EXAMPLE, Chat, how
from nemodiff_jax.errors import UserError
from nemodiff_jax.io.hub import find_checkpoint
from nemodiff_jax.prompts import finish_row

flags.adopt_module_key_flags(shared)


def main() -> int:
  """Runs the command; returns the exit code."""
  opened = shared.checkpoint()
  if opened.template is None or opened.tokenizer is None:
    raise UserError(
      f"{opened.folder}: a chat needs a chat template (chat_template.jinja)"
      " and a tokenizer; use cli.generate."
    )
  row = finish_row(opened.tokenizer, shared.row_settings(opened))
  config = shared.run_config(opened.config)
  limit, think = shared.max_length(), shared.ENABLE_THINKING.value
  chat = Chat(
    shared.load(opened),
    functools.partial(shared.run_config, opened.config),
    config,
    row,
    limit,
    {} if think is None else {"enable_thinking": think},
  )
  signal.signal(signal.SIGINT, chat.interrupt)
  embedded = opened.folder == find_checkpoint(None)
  name = (
    "the embedded model: sums in words, each question on its own; try:"
    f" {EXAMPLE}"
  )
  print(f"[{name if embedded else opened.folder.name}]")
  print(f"[{how(config)}; /help for commands]")
  # Bytes that are no UTF-8 come as halves of pairs, which `reply` refuses.
  process.reconfigure_text(sys.stdin, "surrogateescape")
  if sys.stdin.isatty():
    import readline  # noqa: F401  (makes input() editable)
  while True:
    try:
      line = input("> ").strip()
      if line.startswith("/"):
        if not chat.command(line):
          return 0
      elif line:
        with _no_echo():
          chat.reply(line)
    except EOFError:
      print()
      return 0
    except KeyboardInterrupt:
      print("\n[/quit or Ctrl-D leaves]")
    except UserError as e:
      print(f"error: {e}", file=sys.stderr)


@contextlib.contextmanager
def _no_echo() -> Generator[None]:
  """What is typed meanwhile is the next turn, not a part of the reply."""
  if not sys.stdin.isatty():
    yield
    return
  file = sys.stdin.fileno()
  before = termios.tcgetattr(file)
  quiet = [*before]
  quiet[3] &= ~termios.ECHO
  termios.tcsetattr(file, termios.TCSADRAIN, quiet)
  try:
    yield
  finally:
    termios.tcsetattr(file, termios.TCSADRAIN, before)


def console() -> None:
  """Entry point of the installed command."""
  process.console(main)


if __name__ == "__main__":
  console()
