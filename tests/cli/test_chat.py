"""cli.chat through a pseudo-terminal, and the cache it keeps."""

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from absl.testing import flagsaver

import nemodiff_jax as nd
from nemodiff_jax import streams
from nemodiff_jax.cli import chat as chat_command
from nemodiff_jax.cli import main as process
from nemodiff_jax.decode.config import RowSettings, decode_config
from nemodiff_jax.engines import open_engine
from tests import helpers
from tests.decode.batch import MODES


def last(items):
  *_, output = items
  return output


def reply(engine, prompt, row):
  made = engine.submit(prompt, row, stream=True)
  while not made.ended:
    engine.step()
  return made


@pytest.mark.parametrize(
  "mode",
  [
    pytest.param(m, marks=[] if m == "linear_spec" else [pytest.mark.slow])
    for m in MODES
  ],
)
def test_reused_pages_change_nothing(folder, mode):
  """A second turn that reads only what is new says what a fresh one says."""
  model = nd.load(str(folder))
  config = decode_config(model.config, mode, **MODES[mode])
  row = RowSettings(12)
  engine, fresh = (
    open_engine(model, config, rows=1, max_length=400) for _ in range(2)
  )
  prompt = helpers.prompts_of(model.config, (140,))[0]
  first = reply(engine, prompt, row)
  assert first.request.reused == 0
  more = [*prompt, *first.output.token_ids[:-1], 70, 71, 72]
  other = prompt[:10] + more[30:]  # The conversation was changed at 10.
  for turn, reused in ((more, 128), (other, 0), (prompt, 128)):
    fresh.cache.pages.flush()
    made, anew = reply(engine, turn, row), reply(fresh, turn, row)
    assert (made.request.reused, anew.request.reused) == (reused, 0)
    got, want = made.output.result(), anew.output.result()
    assert (got.token_ids, got.nfe) == (want.token_ids, want.nfe)
    assert got.accepted == want.accepted
    assert made.output.text == anew.output.text


def test_a_reply_broken_off_leaves_good_pages(folder):
  model = nd.load(str(folder))
  config = decode_config(model.config, "ar")
  row = RowSettings(30, ignore_eos=True)
  engine = open_engine(model, config, rows=1, max_length=400)
  prompt = helpers.prompts_of(model.config, (130,))[0]
  made = engine.submit(prompt, row, stream=True)
  for _ in range(9):
    engine.step()
  assert engine.cancel(made) and not engine.cancel(made)
  again = reply(engine, prompt, row)
  want = last(streams.watch(model, config, prompt, row))
  assert again.output.token_ids == want.token_ids
  assert again.request.reused == 128


class Terminal:
  """A command in a pseudo-terminal."""

  def __init__(self, *command):
    self.master, slave = pty.openpty()
    self.process = subprocess.Popen(
      command, stdin=slave, stdout=slave, stderr=slave, close_fds=True,
      start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    self.text = ""

  def until(self, pattern, seconds=300, again=None):
    """Reads until the pattern appears behind what was read before.

    `again` is done every ten seconds: a signal that comes just before input()
    begins to wait is not seen before the next.
    """
    start, begun, turns = len(self.text), time.time(), 0
    end = begun + seconds
    while not re.search(pattern, self.text[start:]):
      if again is not None and time.time() >= begun + 10 * turns:
        again()
        turns += 1
      assert time.time() < end, f"{pattern!r} not in {self.text[start:]!r}"
      if select.select([self.master], [], [], 0.2)[0]:
        try:
          self.text += os.read(self.master, 4096).decode(errors="replace")
        except OSError:
          break
    return self.text[start:]

  def interrupt(self):
    os.kill(self.process.pid, signal.SIGINT)

  def say(self, line):
    os.write(self.master, (line + "\n").encode())


def test_chat_in_a_terminal(chatty):
  chat = Terminal(
    sys.executable, "-m", "nemodiff_jax.cli.chat", f"--checkpoint={chatty}",
    "--max_new_tokens=120",
  )  # fmt: skip
  name = rf"\[{chatty.name}\]\s+"
  chat.until(name + r"\[linear_spec, block auto; /help for commands\][\s\S]*> ")
  chat.say("w20 w21")
  seen = chat.until(
    r"\[linear_spec: \d+ tokens in \d+ passes, prompt of 5[\s\S]*> "
  )
  assert re.search(r"w\d+ w\d+", seen)
  chat.say("/mode linear_spec")
  chat.until(r"\[linear_spec, block 8\][\s\S]*> ")
  chat.say("w30")
  seen = chat.until(r"\[linear_spec: .* prompt of [^]]*\][\s\S]*> ")
  assert "reused" not in seen  # Pages are reused whole.
  chat.say("/mode best")
  chat.until(r"error: mode should be one of[\s\S]*> ")
  chat.say("/what")
  chat.until(r"unknown command '/what'[\s\S]*> ")
  chat.say("/reset")
  chat.until(r"\[forgotten\][\s\S]*> ")
  chat.say("w20 " * 130)
  chat.until(r"\[linear_spec: .* prompt of 13\d[,\]][\s\S]*> ")
  chat.say("w21")
  chat.until(r"prompt of \d+ \((128|256) reused\)[\s\S]*> ")
  chat.say("/reset")
  chat.until(r"\[forgotten\][\s\S]*> ")
  chat.say("w20 " * 500)
  chat.until(r"error: prompt \(\d+ tokens\)[\s\S]*> ")
  chat.until(r"\[/quit or Ctrl-D leaves\][\s\S]*> ", again=chat.interrupt)
  chat.say("/mode ar")
  chat.until(r"\[ar, block 8\][\s\S]*> ")
  chat.say("w9")
  chat.until(r"w\d+ w\d+ w\d+")
  chat.interrupt()  # Stops the reply, not the chat.
  chat.until(r"\[stopped\][\s\S]*> ")
  chat.say("/quit")
  assert chat.process.wait(60) == 0


def test_a_chat_outlives_bytes_that_are_no_text_and_sigterm_ends_it(
  chatty,
):
  """/mode keeps what the flags said of the other modes."""
  chat = Terminal(
    sys.executable, "-m", "nemodiff_jax.cli.chat", f"--checkpoint={chatty}",
    "--max_new_tokens=4", "--block_length=4", "--mode=diffusion",
    "--steps_per_block=2",
  )  # fmt: skip
  chat.until(r"\[diffusion, block 4; /help for commands\][\s\S]*> ")
  os.write(chat.master, b"w20 \xff\n")
  chat.until(r"error: the line is not UTF-8; it was not sent\.[\s\S]*> ")
  chat.say("/mode linear_spec")
  chat.until(r"\[linear_spec, block 4\][\s\S]*> ")
  chat.say("w20")  # The line before is no part of the conversation.
  cut = ", cut at --max_new_tokens"
  chat.until(rf"passes, prompt of 4{cut}\][\s\S]*> ")
  chat.process.send_signal(signal.SIGTERM)
  assert chat.process.wait(60) == 143


@pytest.mark.parametrize("line", [b"\xff\xfe", b"w20 \xc3", b"\xed\xa0\xbd"])
def test_a_pipe_into_a_chat_may_hold_any_bytes(
  chatty,
  monkeypatch,
  capsys,
  line,
):
  stdin = io.TextIOWrapper(io.BytesIO(line + b"\n/mode ar\nw20\n"), "utf-8")
  monkeypatch.setattr(sys, "stdin", stdin)
  argv = ["chat", f"--checkpoint={chatty}", "--max_new_tokens=3"]
  handler = signal.getsignal(signal.SIGINT)
  try:
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as stop:
      process.run(chat_command.main, argv)
  finally:
    signal.signal(signal.SIGINT, handler)
  shown = capsys.readouterr()
  assert not stop.value.code and "[ar: 3 tokens in 3 passes" in shown.out
  assert shown.err == "error: the line is not UTF-8; it was not sent.\n"


@pytest.mark.slow
def test_embedded_model_answers_every_question_of_a_chat():
  lines = [
    "What is 50 + 66 - 39?",
    "/mode linear_spec",
    "How many legs do 7 spiders, 4 hens and 6 crabs have in all?",
    "/mode diffusion",
    "The film starts at 09:40 and ends at 21:15. How long is it?",
  ]
  done = subprocess.run(
    [sys.executable, "-m", "nemodiff_jax.cli.chat", "--checkpoint=embedded"],
    capture_output=True, text=True, input="\n".join(lines),
  )  # fmt: skip
  assert "each question on its own" in done.stdout
  answers = re.findall(r"The answer is (\S+)\.", done.stdout)
  assert answers == ["77", "124", "11:35"]


def test_chat_without_a_template(tmp_path, tiny):
  helpers.write_checkpoint(tmp_path, tiny)
  done = subprocess.run(
    [sys.executable, "-m", "nemodiff_jax.cli.chat", f"--checkpoint={tmp_path}"],
    capture_output=True, text=True, input="",
  )  # fmt: skip
  assert done.returncode == 2
  assert "needs a chat template" in done.stderr
