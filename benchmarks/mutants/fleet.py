"""Breaks of jobs on many devices; a part of the mutations of decoding."""

import functools

from benchmarks.mutants import of_library

_break = functools.partial(of_library, "fleet")
SOURCE = "tests/fleet/test_source.py"
FOLDER = "tests/fleet/test_folder.py"
COMMAND = "tests/fleet/test_command.py"
MUTATIONS = (
  _break(
    "an id of an earlier part is not known", "fleet/source.py",
    "< first:", "< 0:", f"{SOURCE} earlier",
  ),
  _break(
    "an id is known before it was there", "fleet/source.py",
    "< first:", "<= line.number:", f"{SOURCE} earlier",
  ),
  _break(
    "blank lines have no number", "fleet/source.py",
    "        self._next += 1\n",
    "        self._next += not is_blank(raw)\n", f"{SOURCE} lines_of_the_file",
  ),
  _break(
    "a part begins where its file does", "fleet/source.py",
    "start, first, lines = position, self._next, []",
    "first, lines = self._next, []", f"{SOURCE} lines_of_the_file",
  ),
  _break(
    "each file has a line 1", "fleet/source.py",
    "    position = 0\n", "    position, self._next = 0, 1\n",
    f"{SOURCE} one_input",
  ),
  _break(
    "a file of another content is the same input", "fleet/source.py",
    "        self.digest.update(raw)\n", "", f"{SOURCE} digest",
  ),
  _break(
    "a part is written in place", "fleet/folder.py",
    "    os.replace(fresh, path)\n", "    os.link(fresh, path)\n",
    f"{FOLDER} full_disk",
  ),
  _break(
    "half a part stays", "fleet/folder.py",
    "  except BaseException:\n", "  except ValueError:\n", f"{FOLDER} full_disk",
  ),
  _break(
    "parts are not on the disk when they have their name", "fleet/folder.py",
    "    _to_disk(fresh)\n", "", f"{FOLDER} full_disk",
  ),
  _break(
    "what a killed job left stays", "fleet/folder.py",
    "          os.remove(os.path.join(self.path, name))\n", "          pass\n",
    f"{FOLDER} cleared",
  ),
  _break(
    "a folder without a manifest is taken", "fleet/folder.py",
    "if held and not manifest.exists():", "if not names and held:",
    f"{FOLDER} another_job",
  ),
  _break(
    "a part is tried for ever", "fleet/worker.py",
    "    tries.begin()\n", "", f"{COMMAND} given_up",
  ),
  _break(
    "a fault in an actor is raised", "fleet/worker.py",
    "    except Exception as e:\n", "    except MemoryError as e:\n",
    f"{COMMAND} fault",
  ),
  _break(
    "the engine stays as the first part had it", "fleet/decoding.py",
    "or wanted != self._needs:", "or not self._needs:", f"{COMMAND} need_more",
  ),
  _break(
    "the next engine forgets what was needed", "fleet/decoding.py",
    "0 if most.logprobs is None else 1 + most.logprobs", "0",
    f"{COMMAND} need_more",
  ),
  _break(
    "errors of before do not count", "cli/batch.py",
    "before = sum(held.errors(number, job.form) for number in held.done)",
    "before = 0", f"{COMMAND} goes_on",
  ),
  _break(
    "parts that are done are done again", "cli/batch.py",
    "if p.number not in held.done", "if p.number >= 0", f"{COMMAND} goes_on",
  ),
  _break(
    "flags of how to decode stay here", "cli/batch.py",
    "    if flag.present and flag.value is not None:\n",
    "    if flag.name == 'checkpoint':\n", f"{COMMAND} one_process",
  ),
  _break(
    "a part that is elsewhere is done", "cli/batch.py",
    "if not os.path.exists(path):", "if not path:", f"{COMMAND} missed",
  ),
  _break(
    "the smaller machine has too many actors", "fleet/cluster.py",
    "math.ceil(wanted / len(cpus))", "1", f"{COMMAND} per_device",
  ),
)  # fmt: skip
