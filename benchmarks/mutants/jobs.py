"""Breaks of jobs and commands; a part of the mutations of decoding."""

import functools

from benchmarks.mutants import of_library

_break = functools.partial(of_library, "jobs")
LINES = "tests/io/test_jsonl.py"
FILE = "tests/cli/test_results.py"
FLAGS = "tests/cli/test_flags.py"
BATCH = "tests/cli/test_openai_lines.py"
SIGNALS = "tests/cli/test_signals.py"
MUTATIONS = (
  _break(
    "one level more of lists", "io/jsonl.py",
    "for _ in range(most):", "for _ in range(most + 1):", LINES,
  ),
  _break(
    "a key may be there twice", "io/jsonl.py",
    "if count[key] > 1", "if count[key] > 2", LINES,
  ),
  _break(
    "byte order marks are text", "io/jsonl.py",
    "text = raw.removeprefix(_BOM).decode", "text = raw.decode", LINES,
  ),
  _break(
    "any white byte is a blank line's, but a mark", "io/jsonl.py",
    "return not raw.removeprefix(_BOM).strip()", "return not raw.strip()",
    LINES,
  ),
  _break(
    "NaN is written", "io/jsonl.py", "allow_nan=False", "allow_nan=True",
    "tests/cli/test_fuzz.py null",
  ),
  _break(
    "U+0085 is written as it is", "io/jsonl.py",
    '_LINE_ENDS = "\\x85', '_LINE_ENDS = "', f"{FILE} every_reader",
  ),
  _break(
    "no lock on the settings", "cli/results.py",
    "  _lock(file, path, fcntl.flock)\n", "", f"{FILE} respected",
  ),
  _break(
    "a link has a lock of its own", "cli/results.py",
    "        _lock(self._file, path, fcntl.lockf)  # By any name that it has.\n",
    "", f"{FILE} second_job",
  ),
  _break(
    "errors that hold are written again", "cli/results.py",
    "elif raw in refused:", "elif not refused:", f"{FILE} touch",
  ),
  _break(
    "a repeated id is forgotten", "cli/results.py",
    "in self.done and not again", "in self.done", f"{FILE} touch",
  ),
  _break(
    "a new file has a new mode", "cli/results.py",
    '    shutil.copymode(real, real + ".tmp")\n', "", f"{FILE} mended",
  ),
  _break(
    "a link is replaced by a file", "cli/results.py",
    "real = os.path.realpath(path)", "real = path", f"{FILE} mended",
  ),
  _break(
    "a torn line stays", "cli/results.py",
    "self._file.truncate(sum(map(len, kept)))", "pass", f"{FILE} torn",
  ),
  _break(
    "devices get settings", "cli/results.py",
    "regular = not os.path.exists(path) or os.path.isfile(path)",
    "regular = True", f"{FILE} device",
  ),
  _break(
    "an error is cut one short", "cli/results.py",
    "if len(message) > _LONGEST:", "if len(message) >= _LONGEST:",
    f"{FILE} book",
  ),
  _break(
    "--chat is no setting", "cli/flags.py",
    '    "chat": CHAT.value,\n', "", f"{FILE} templates",
  ),
  _break(
    "--enable_thinking is no setting", "cli/flags.py",
    '    "enable_thinking": ENABLE_THINKING.value,\n', "",
    f"{FILE} templates",
  ),
  _break(
    "--threshold=none is auto", "cli/flags.py",
    'if text.lower() == "none":\n    return None',
    'if text.lower() == "none":\n    return "auto"', f"{FLAGS} threshold",
  ),
  _break(
    "/mode forgets --block_length", "cli/flags.py",
    "block_length=block_length(),", "block_length=None,",
    f"{FLAGS} run_config",
  ),
  _break(
    "--batch_size=1 is too small", "cli/flags.py",
    "if BATCH_SIZE.value < 1:", "if BATCH_SIZE.value < 2:",
    f"{FLAGS} defaults",
  ),
  _break(
    "--max_length=1 is too small", "cli/flags.py",
    "if value is not None and value < 1:", "if value is not None and value < 2:",
    f"{FLAGS} defaults",
  ),
  _break(
    "a flag wins over a line", "cli/jobs.py",
    "row = dataclasses.replace(self.row, **own)",
    "row = dataclasses.replace(self.row)", f"{FLAGS} precedence",
  ),
  _break(
    "exit code 0 with errors", "cli/progress.py",
    "return 3 if failed else 0", "return 0", f"{FILE} order",
  ),
  _break(
    "errors stand before all results", "cli/run_job.py",
    "  for item in items:\n    if isinstance",
    "  for item in sorted(items, key=lambda i: isinstance(i, Task)):\n"
    "    if isinstance",
    f"{FILE} order",
  ),
  _break(
    "tokens per forward of batches", "cli/progress.py",
    "self._passes += passes", "self._passes += 1", f"{FLAGS} summary",
  ),
  _break(
    "a flag that does not parse is 1", "command_line.py",
    '--help lists the flags.", file=sys.stderr)\n  sys.exit(2)',
    '--help lists the flags.", file=sys.stderr)\n  sys.exit(1)', "tests/cli/test_generate.py do_not_parse",
  ),
  _break(
    "a lost exception goes on for ever", "signals.py",
    "      os._exit(128 + number)\n", "", f"{SIGNALS} lost",
  ),
  _break(
    "SIGTERM has the code of Ctrl-C", "signals.py",
    "  sys.exit(128 + number)", "  sys.exit(130)", f"{SIGNALS} lost",
  ),
  _break(
    "a command's own handler is overruled", "signals.py",
    "if signal.getsignal(number) in (_leave, signal.default_int_handler):",
    "if True:", f"{SIGNALS} own",
  ),
  _break(
    "null is a value in a batch", "cli/openai_lines.py",
    "  return {k: v for k, v in given.items() if v is not None}",
    "  return given", f"{BATCH} absent",
  ),
  _break(
    "a refusal in a batch is a 200", "cli/openai_lines.py",
    "_line(line, name, refused.status, openai_error",
    "_line(line, name, 200, openai_error", f"{BATCH} 400",
  ),
  _break(
    "a batch draws its seeds", "cli/openai_calls.py",
    'for name in ("temperature", "top_k", "top_p", "min_p", "seed")',
    'for name in ("temperature", "top_k", "top_p", "min_p")', f"{BATCH} absent",
  ),
  _break(
    "a batch may stream", "cli/openai_calls.py",
    "if given.stream:", "if False:", f"{BATCH} 400",
  ),
  _break(
    "a batch has the server's length", "cli/openai_calls.py",
    'own["max_tokens"] = row.max_new_tokens', "pass", f"{BATCH} own_lines",
  ),
  _break(
    "a refused line of a batch ends the job", "cli/run_job.py",
    "        elif isinstance(output, UserError):\n          errors += 1\n",
    "        elif isinstance(output, UserError):\n          raise output\n",
    f"{BATCH} turn",
  ),
  _break(
    "bytes are sent as they are", "cli/conversation.py",
    "if not is_text(line):", 'if line == "":',
    "tests/cli/test_chat.py pipe",
  ),
)  # fmt: skip
